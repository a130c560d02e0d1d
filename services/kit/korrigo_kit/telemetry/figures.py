"""What the processes of a room counted in the last quarter of an hour, for whoever has no monitoring system.

Counters live in processes, and one replica cannot see into another. So every process that has samples of its own (an
API, a worker with its pool) writes its figures of the last minutes beside its heartbeats, and any replica adds up
what all of them wrote. A process that ended takes its figures along; /metrics and Prometheus forget nothing.

`Teller` is started by `kit.serve` and `kit.work`; `read` is called by the room's gRPC face and by grading's summary.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from korrigo_kit.errors import KorrigoError
from korrigo_kit.telemetry import metrics, samples

if TYPE_CHECKING:
    from korrigo_kit.db import Tx
    from korrigo_kit.room import Runtime

log = logging.getLogger("korrigo.figures")

WINDOW_SECONDS = 900.0
TELL_SECONDS = 15.0
# Three silences are the end of a process, as for workers.
SILENT_SECONDS = 45
PREFIX = "figures:"
LATENCY = "http_request_duration_seconds"
# Sample -> the label that is kept; the others are added up.
TOLD: dict[str, str] = {
    "grading_ocr_errors_total": "error_type",
    "grading_lock_conflicts_total": "conflict_type",
    "grading_object_store_errors_total": "operation",
    "grading_interventions_total": "result",
    "grading_login_failures_total": "",
    "grading_import_duration_seconds_count": "status",
    "grading_finalize_duration_seconds_count": "status",
    "http_requests_total": "status",
    f"{LATENCY}_bucket": "le",
}
# As in the rule HighLatency: answers that are meant to last.
_ENDLESS = re.compile(r".*/events|.*/stream|/metrics")

# (sample, value of its kept label) -> number.
Numbers = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Told:
    """What one process counted: its service, over how many seconds, and the numbers that are not 0, and all buckets."""

    process: str
    service: str
    seconds: float
    numbers: Numbers


def numbers(families: Iterable[Metric]) -> Numbers:
    """Pick out what is told of the samples of a process."""
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for family in families:
        for sample in family.samples:
            if sample.name not in TOLD:
                continue
            if sample.name.startswith(LATENCY) and _ENDLESS.fullmatch(sample.labels.get("path", "")):
                continue
            found[sample.name, sample.labels.get(TOLD[sample.name], "")] += sample.value
    return found


class Teller:
    """Writes the figures of this process into the table of one room."""

    def __init__(
        self,
        runtime: Runtime,
        service: str,
        collect: Callable[[], Iterable[Metric]] | None = None,
        *,
        process: str = "",
    ) -> None:
        self._runtime = runtime
        self._service = service
        self._collect = collect or metrics.process_registry().collect
        self._name = f"{PREFIX}{service}:{process or f'{socket.gethostname()}:{samples.identity()}'}"
        self._seen: deque[tuple[float, Numbers]] = deque([(time.monotonic(), numbers(self._collect()))])

    def run(self, stop: threading.Event) -> None:
        """Tell until told to stop."""
        while not stop.wait(TELL_SECONDS):
            try:
                self.tell()
            except KorrigoError as error:
                log.debug("figures wait: %s", error.reason)
            except Exception:
                log.exception("figures failed")

    def tell(self) -> None:
        """Write what was counted within the window."""
        # Late: with it comes the broker's client, which whoever only reads figures does without.
        from korrigo_kit.parts import beat

        now, current = time.monotonic(), numbers(self._collect())
        self._seen.append((now, current))
        # The oldest one kept is the last that is not younger than the window.
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        grown = {key: value - first.get(key, 0) for key, value in current.items()}
        # An empty bucket says where the next one begins; other zeros say nothing.
        told = [[*key, more] for key, more in grown.items() if more or key[0].endswith("_bucket")]
        beat(self._runtime, self._name, service=self._service, seconds=now - began, numbers=told)


def read(tx: Tx) -> list[Told]:
    """Read what the living processes told into this room's table."""
    rows = tx.all(
        "SELECT name, facts FROM heartbeats WHERE name LIKE %s"
        " AND beat_at > clock_timestamp() - make_interval(secs => %s) ORDER BY name",
        (f"{PREFIX}%", SILENT_SECONDS),
    )
    return [
        Told(
            process=row["name"].removeprefix(PREFIX),
            service=str(row["facts"]["service"]),
            seconds=float(row["facts"]["seconds"]),
            numbers={(name, label): float(value) for name, label, value in row["facts"]["numbers"]},
        )
        for row in rows
    ]


def total(told: Iterable[Told]) -> Numbers:
    """Add up the numbers of several processes."""
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for one in told:
        for key, value in one.numbers.items():
            found[key] += value
    return found


def quantile(wanted: float, found: Numbers, sample: str = f"{LATENCY}_bucket") -> float | None:
    """Return a quantile in seconds, interpolated as Prometheus does; None when nothing was measured.

    What lies beyond the last bound is told as the last bound.
    """
    buckets = sorted((float(label), value) for (name, label), value in found.items() if name == sample)
    if not buckets or buckets[-1][1] <= 0:
        return None
    return _within(buckets, wanted * buckets[-1][1])


def _within(buckets: Sequence[tuple[float, float]], rank: float) -> float:
    below, before = 0.0, 0.0
    for bound, until in buckets:
        if until >= rank and until > before:
            return below if bound == float("inf") else below + (bound - below) * (rank - before) / (until - before)
        below, before = bound, until
    return below
