"""The gauges that every room has: database, broker, queues, workers, sweeper, jobs, what is stuck, disk and memory.

Built once per process for all of its rooms, so that each series is told once where one process serves several.
Where the database is away only what needs none is told, `grading_db_up` above all, and soon enough for a scrape.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
from prometheus_client.core import Metric

from korrigo_kit import queues, stuck
from korrigo_kit.credentials import database_roles
from korrigo_kit.errors import KorrigoError
from korrigo_kit.parts import SWEPT
from korrigo_kit.telemetry.metrics import CachedGauges, GaugeSource, gauge

if TYPE_CHECKING:
    from korrigo_kit.room import Runtime

log = logging.getLogger("korrigo.metrics")

JOB_STATES = ("READY", "RUNNING", "DONE", "FAILED", "QUARANTINED", "CANCELLED")
CONNECTION_STATES = ("active", "idle", "idle_in_transaction")
_STARTED = time.time()
# A refusal comes at once; a server that says nothing is asked only once, because a scrape waits.
_REFUSED_SECONDS = 0.5
# How long a room that cannot be asked is taken at its last word: one timeout must not end an alert (stuck copies would
# fall to 0) nor begin one (queues without workers are a P0). Longer than SweeperStale needs (300 s and 2 minutes),
# which then tells that the room is not looked at; not for ever, because another replica may know better, and what
# nobody has seen must not hide that all workers are gone.
KEPT_SECONDS = 600.0

T = TypeVar("T")
Clock = Callable[[], float]

db_up = gauge("grading_db_up", "1 while the database answers this process.")
broker_up = gauge("grading_broker_up", "1 while the broker answers this process.")
db_connections = gauge(
    "grading_db_connections", "Connections of clients to the database server, by state.", state=CONNECTION_STATES
)
db_connections_max = gauge("grading_db_connections_max", "Connections that the database server allows.")
db_blocked_queries = gauge("grading_db_blocked_queries", "Sessions that wait for a lock of another.")
db_oldest_query_seconds = gauge(
    "grading_db_oldest_query_seconds",
    "Age of the oldest running statement of the rooms; backup and migration are left out.",
)
queue_messages = gauge(
    "broker_queue_messages",
    "Messages of a queue by state; unacked needs KORRIGO_BROKER__MANAGEMENT_URL with RabbitMQ.",
    queue=None,
    state=("ready", "unacked"),
)
queue_oldest_seconds = gauge(
    "broker_queue_oldest_seconds", "Time for which the oldest due job of a queue has waited.", queue=None
)
workers_ready = gauge("grading_workers_ready", "Workers that serve a queue and gave a sign within 15 s.", queue=None)
jobs_by_state = gauge("grading_jobs", "Jobs by kind and state.", kind=None, state=JOB_STATES)
stuck_copies = gauge(
    "grading_stuck_copies",
    "Copies that are not healed 60 s after something went wrong, by stage and reason.",
    stage=stuck.STAGES,
    reason=stuck.REASONS,
)
sweep_at = gauge(
    "grading_sweep_last_success_timestamp_seconds",
    "When the sweeper of the room came round without a failure; of several rooms, the oldest.",
)
outbox_oldest_seconds = gauge(
    "grading_audit_outbox_oldest_seconds", "Age of the oldest event that was not sent to the other rooms yet."
)
storage_available = gauge("grading_storage_available_bytes", "Free room of a volume.", volume=None)
storage_size = gauge("grading_storage_size_bytes", "Size of a volume.", volume=None)
memory_available = gauge("grading_memory_available_bytes", "Memory that the machine can still give (MemAvailable).")
build_info = gauge("korrigo_build_info", "Always 1; the labels say what runs.", version=None, python=None)


def collectors(
    runtimes: Mapping[str, Runtime], cache_seconds: float, clock: Clock = time.monotonic
) -> list[CachedGauges]:
    """Build the collectors of a process that serves these rooms: kit's gauges, then each room's own."""
    rooms = list(runtimes.values())
    workers, stuck_ones = _LastWord(rooms, _workers_of, clock), _LastWord(rooms, _stuck_of, clock)
    guard = _Guard(rooms)
    sources: list[GaugeSource] = [guard.read, lambda: _messages(rooms), lambda: machine(rooms)]
    need_database: list[GaugeSource] = [
        lambda: _workers(workers.read()),
        lambda: _jobs(rooms),
        lambda: _stuck(stuck_ones.read()),
        _Sweeps(rooms).read,
        lambda: _outbox(rooms),
        *(source for rt in rooms for source in rt.room.gauges(rt)),
    ]
    sources += [guard.unless_down(source) for source in need_database]
    return [CachedGauges(source, cache_seconds) for source in sources]


class _Guard:
    """Looks at the database first, so that a scrape waits for one failed connection and not for twenty."""

    def __init__(self, rooms: Sequence[Runtime]) -> None:
        self._rooms = rooms
        self._is_up = False

    def read(self) -> Iterable[Metric]:
        found = self._look()
        self._is_up = found is not None
        yield db_up.value(1.0 if found is not None else 0.0)
        yield from found or ()

    def _look(self) -> list[Metric] | None:
        """Look as the first room that is let in; one role that is refused is no dead database."""
        began = time.monotonic()
        for room in self._rooms:
            found = _look(room)
            if found is not None or time.monotonic() - began > _REFUSED_SECONDS:
                return found
        return None

    def unless_down(self, source: GaugeSource) -> GaugeSource:
        return lambda: source() if self._is_up else ()


# pg_stat_activity hides the state of other roles' sessions from a role without pg_read_all_stats: those count as idle.
_DATABASE = """
SELECT count(*) FILTER (WHERE state IN ('active', 'fastpath function call')) AS active,
       count(*) FILTER (WHERE state LIKE 'idle in transaction%%') AS idle_in_transaction, count(*) AS total,
       current_setting('max_connections')::int AS allowed,
       (SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted) AS blocked,
       coalesce(max(extract(epoch FROM clock_timestamp() - query_start)) FILTER (WHERE state = 'active'
           AND usename = ANY(%(roles)s) AND pid <> pg_backend_pid()), 0)::float8 AS oldest
FROM pg_stat_activity WHERE datname IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
"""


def _look(room: Runtime) -> list[Metric] | None:
    """Read what the server tells of itself, on a connection outside the pool: a busy pool is no dead database."""
    try:
        with room.db.connect() as connection:
            cursor = connection.execute(_DATABASE, {"roles": database_roles(room.settings.database)})
            names = [column.name for column in cursor.description or ()]
            found = dict(zip(names, cursor.fetchone() or (), strict=True))
    except psycopg.Error:
        return None
    active, waiting = float(found["active"]), float(found["idle_in_transaction"])
    return [
        db_connections.family(
            {("active",): active, ("idle_in_transaction",): waiting, ("idle",): found["total"] - active - waiting}
        ),
        db_connections_max.value(found["allowed"]),
        db_blocked_queries.value(found["blocked"]),
        db_oldest_query_seconds.value(found["oldest"]),
    ]


def _messages(rooms: Sequence[Runtime]) -> Iterable[Metric]:
    settings = rooms[0].settings
    found = queues.lengths(settings, [name for rt in rooms for name in _queues(rt)])
    yield broker_up.value(0.0 if found is None else 1.0)
    if found is not None:
        yield queue_messages.family({labels: float(number) for labels, number in found.items()})


def _queues(rt: Runtime) -> list[str]:
    heard = [f"events.{rt.name}"] if any(found.routing_keys for found in rt.room.subscriptions(rt)) else []
    return [*([f"jobs.{rt.name}"] if rt.room.tasks(rt) else []), *heard]


def _each(rooms: Sequence[Runtime], sql: str, *values: object) -> list[tuple[Runtime, list[dict[str, Any]]]]:
    """Ask every room; one that cannot be asked is left out and takes nothing from the others."""
    answers = []
    for rt in rooms:
        try:
            with rt.db.transaction() as tx:
                answers.append((rt, tx.all(sql, values)))
        except KorrigoError as error:
            log.warning("gauges of %s left out: %s", rt.name, error.reason, extra={"reason": error.reason})
    return answers


class _LastWord(Generic[T]):
    """Asks every room; one that cannot be asked is taken at its last word for KEPT_SECONDS, then left out."""

    def __init__(self, rooms: Sequence[Runtime], ask: Callable[[Runtime], T], clock: Clock) -> None:
        self._rooms = rooms
        self._ask = ask
        self._clock = clock
        self._words: dict[str, tuple[float, T]] = {}

    def read(self) -> list[tuple[Runtime, T]]:
        for rt in self._rooms:
            try:
                self._words[rt.name] = (self._clock(), self._ask(rt))
            except KorrigoError as error:
                log.warning("gauges of %s are old: %s", rt.name, error.reason, extra={"reason": error.reason})
        since = self._clock() - KEPT_SECONDS
        known = [(rt, self._words.get(rt.name)) for rt in self._rooms]
        return [(rt, word[1]) for rt, word in known if word is not None and word[0] >= since]


def _workers_of(rt: Runtime) -> dict[str, Any]:
    sql = (
        "SELECT (SELECT count(*) FROM heartbeats WHERE name LIKE %s"
        "   AND beat_at > clock_timestamp() - make_interval(secs => %s)) AS workers,"
        " (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(not_before)), 0) FROM jobs"
        "   WHERE state = 'READY' AND not_before <= clock_timestamp())::float8 AS oldest"
    )
    with rt.db.transaction() as tx:
        return tx.row(sql, (f"{stuck.WORKER_PREFIX}%", stuck.WORKER_SILENCE_SECONDS))


def _workers(answers: Sequence[tuple[Runtime, Mapping[str, Any]]]) -> Iterable[Metric]:
    yield workers_ready.family({(name,): found["workers"] for rt, found in answers for name in _queues(rt)})
    yield queue_oldest_seconds.family(
        {(f"jobs.{rt.name}",): found["oldest"] for rt, found in answers if rt.room.tasks(rt)}
    )


def _jobs(rooms: Sequence[Runtime]) -> Iterable[Metric]:
    numbers: Counter[tuple[str, ...]] = Counter()
    for rt, rows in _each(rooms, "SELECT kind, state, count(*) AS n FROM jobs GROUP BY kind, state"):
        numbers.update({(kind, state): 0 for kind in rt.room.tasks(rt) for state in JOB_STATES})
        numbers.update({(row["kind"], row["state"]): row["n"] for row in rows})
    if numbers:
        yield jobs_by_state.family({labels: float(number) for labels, number in numbers.items()})


def _stuck_of(rt: Runtime) -> Mapping[tuple[str, ...], float]:
    return stuck.count(rt.room.stuck(rt))


def _stuck(answers: Sequence[tuple[Runtime, Mapping[tuple[str, ...], float]]]) -> Iterable[Metric]:
    numbers: Counter[tuple[str, ...]] = Counter()
    for _, found in answers:
        numbers.update(found)
    yield stuck_copies.family(numbers)


class _Sweeps:
    """When each room was swept last. A room that cannot be asked is not swept either: what was seen last counts on."""

    def __init__(self, rooms: Sequence[Runtime]) -> None:
        self._rooms = rooms
        # A room that was never swept counts from the start of this process.
        self._seen = {rt.name: _STARTED for rt in rooms}

    def read(self) -> Iterable[Metric]:
        sql = "SELECT extract(epoch FROM max(beat_at))::float8 AS at FROM heartbeats WHERE name = %s"
        for rt, rows in _each(self._rooms, sql, SWEPT):
            self._seen[rt.name] = rows[0]["at"] or _STARTED
        yield sweep_at.value(min(self._seen.values()))


def _outbox(rooms: Sequence[Runtime]) -> Iterable[Metric]:
    sql = (
        "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS age"
        " FROM outbox WHERE sent_at IS NULL"
    )
    yield outbox_oldest_seconds.value(max((rows[0]["age"] for _, rows in _each(rooms, sql)), default=0.0))


def machine(rooms: Sequence[Runtime]) -> Iterable[Metric]:
    """Tell what runs, on how much memory and disk."""
    yield from build()
    memory = _memory_available()
    if memory is not None:
        yield memory_available.value(memory)
    settings = rooms[0].settings
    folders = {}
    if settings.blobs.url.startswith("file://"):
        folders["blobs"] = Path(settings.blobs.url.removeprefix("file://"))
    if settings.home is not None:
        folders["home"] = settings.home
    yield from storage(folders)


def build() -> Iterable[Metric]:
    """Tell what runs."""
    yield build_info.family({(version("korrigo"), platform.python_version()): 1.0})


def storage(folders: Mapping[str, Path]) -> Iterable[Metric]:
    """Tell size and free room of the volumes that hold these folders; one that is not there yet is left out."""
    available: dict[tuple[str, ...], float] = {}
    size: dict[tuple[str, ...], float] = {}
    for volume, folder in folders.items():
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        available[volume,] = found.f_bavail * found.f_frsize
        size[volume,] = found.f_blocks * found.f_frsize
    if size:
        yield storage_available.family(available)
        yield storage_size.family(size)


def _memory_available() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return int(found.split()[1]) * 1024.0 if found else None
