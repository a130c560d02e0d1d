"""How a metric is declared, the metrics that every room has, and how a process's /metrics is put together.

Every metric of the contract (operations.md 1) is declared by `counter`, `histogram` or `gauge`, here or in a room's
metrics.py, with its help text and the values that its labels may have; every label set whose values are known is
there from the start with 0, else its first increment would be lost to `increase()`. docs/reference/metrics.md is
generated from the declarations.

Gauges hold no value: they are computed when somebody asks and kept for some seconds. `telemetry.samples` makes
counters survive their process where one /metrics stands for several.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import REGISTRY, Collector

from korrigo_kit.errors import KorrigoError
from korrigo_kit.telemetry import samples

# Settled once, before the first metric is made: each keeps the class of its numbers for good.
_SHARED = samples.folder()
if _SHARED is not None:
    values.ValueClass = samples.SharedValue  # type: ignore[assignment, misc, unused-ignore]

log = logging.getLogger("korrigo.metrics")

GAUGE_CACHE_SECONDS = 10.0

# Up to 120 s, so that a p95 above 5 s can be told from one above 60 s (operations.md 1).
HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
# Work up to 300 s, so that a p95 above the 120 s of a range can be told.
WORK_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

# The values that a label may have; None = known only at run time, and not many.
LabelValues = Sequence[str] | None


@dataclass(frozen=True)
class Declared:
    """A metric as it is declared: for the tests, the reference, and whoever writes rules."""

    name: str
    kind: str
    text: str
    labels: Mapping[str, LabelValues]
    buckets: tuple[float, ...] = ()

    def known_label_sets(self) -> list[tuple[str, ...]]:
        """List the label sets that are there from the start; none when a label's values come at run time."""
        known = [found for found in self.labels.values() if found is not None]
        return list(itertools.product(*known)) if len(known) == len(self.labels) else []


DECLARED: dict[str, Declared] = {}


def _declare(declared: Declared) -> Declared:
    assert declared.name not in DECLARED, f"{declared.name} is declared twice"
    DECLARED[declared.name] = declared
    return declared


def counter(name: str, text: str, **labels: LabelValues) -> Counter:
    """Declare a counter; its name ends in _total."""
    declared = _declare(Declared(name, "counter", text, labels))
    made = Counter(name, text, list(labels))
    for found in declared.known_label_sets() if labels else ():
        made.labels(*found)
    return made


def histogram(name: str, text: str, buckets: tuple[float, ...], **labels: LabelValues) -> Histogram:
    """Declare a histogram of durations in seconds."""
    declared = _declare(Declared(name, "histogram", text, labels, buckets))
    made = Histogram(name, text, list(labels), buckets=buckets)
    for found in declared.known_label_sets() if labels else ():
        made.labels(*found)
    return made


@dataclass(frozen=True)
class Gauge:
    """A declared gauge; a source gives its numbers at scrape time."""

    declared: Declared

    def value(self, number: float) -> GaugeMetricFamily:
        """Make the family of a gauge without labels."""
        return self.family({(): number})

    def family(self, numbers: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
        """Make the family; every known label set that has no number is 0, so a gauge falls when it should."""
        family = GaugeMetricFamily(self.declared.name, self.declared.text, labels=list(self.declared.labels))
        for labels in {**dict.fromkeys(self.declared.known_label_sets(), 0.0), **numbers}.items():
            family.add_metric(*labels)
        return family


def gauge(name: str, text: str, **labels: LabelValues) -> Gauge:
    """Declare a gauge."""
    return Gauge(_declare(Declared(name, "gauge", text, labels)))


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

http_requests_total = counter(
    "http_requests_total", "HTTP requests by route template and exact status.", method=None, path=None, status=None
)
http_request_duration_seconds = histogram(
    "http_request_duration_seconds",
    "Time from the first byte of a request to the last of its answer.",
    HTTP_BUCKETS,
    method=None,
    path=None,
    status=None,
)
object_store_errors_total = counter(
    "grading_object_store_errors_total",
    "Operations that the object store did not do.",
    operation=("put", "get", "head", "delete", "list"),
)
operator_actions_total = counter(
    "grading_operator_actions_total",
    "Actions that an operator, a person or a program, asked for.",
    action=(
        "RetryImport",
        "RetryFinalize",
        "ForceUnlock",
        "ReleaseExpiredLocks",
        "RecreateAuditEvent",
        "CleanupTempFiles",
        "VerifyAudit",
    ),
)
interventions_total = counter(
    "grading_interventions_total",
    "Interventions that ended, by result; a dry run changes nothing.",
    result=("success", "failed", "dry_run"),
)


def expect_requests(routes: Iterable[tuple[str, str, int]]) -> None:
    """Make the series of these (method, path, status) before the first request, and those of a failure of ours."""
    for method, path, status in routes:
        for code in (str(status), "500", "503"):
            http_requests_total.labels(method, path, code)
        http_request_duration_seconds.labels(method, path, str(status))


def observe_request(method: str, path: str, status: int, seconds: float) -> None:
    """Count a request; a method that is none of HTTP's would be a label of the client's choice."""
    known = method if method in METHODS else "OTHER"
    http_requests_total.labels(known, path, str(status)).inc()
    http_request_duration_seconds.labels(known, path, str(status)).observe(seconds)


GaugeSource = Callable[[], Iterable[Metric]]


class CachedGauges(Collector):
    """Gauges computed at scrape time and kept for a while; a failing source leaves its series out."""

    def __init__(self, source: GaugeSource, seconds: float = GAUGE_CACHE_SECONDS) -> None:
        self._source = source
        self._seconds = seconds
        self._lock = threading.Lock()
        self._families: list[Metric] = []
        self._read_at = -1e9

    def collect(self) -> Iterable[Metric]:
        """Return the families, computing them when they are too old."""
        with self._lock:
            if time.monotonic() - self._read_at > self._seconds:
                self._families = self._read()
                self._read_at = time.monotonic()
            return list(self._families)

    def _read(self) -> list[Metric]:
        try:
            return list(self._source())
        except KorrigoError as error:
            # Above all a database that is away: the process's own series must still be seen.
            log.warning("gauges left out: %s", error.reason, extra={"reason": error.reason})
        except Exception:  # whatever is wrong with one source, the others are needed most just then
            log.exception("gauges left out")
        return []

    def describe(self) -> Iterable[Metric]:
        """Describe nothing, so that registering never touches the database."""
        return []


def process_registry() -> CollectorRegistry:
    """Return what this process counted, or all processes of its folder; with the state of this process."""
    if _SHARED is None:
        return REGISTRY
    registry = CollectorRegistry()
    registry.register(samples.SharedSamples(_SHARED))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


def expose(gauges: Iterable[Collector]) -> bytes:
    """Render /metrics of this process (or of all, in multi-process mode) in the text format."""
    own = CollectorRegistry()
    own.register(_Merged(gauges))
    return generate_latest(process_registry()) + generate_latest(own)


class _Merged(Collector):
    """Families of one name from several rooms become one, because the text format knows each name once."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = tuple(collectors)

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for collector in self._collectors:
            for family in collector.collect():
                # A copy: the cached family must not grow with every scrape.
                whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                whole.samples.extend(family.samples)
        return merged.values()

    def describe(self) -> Iterable[Metric]:
        return []
