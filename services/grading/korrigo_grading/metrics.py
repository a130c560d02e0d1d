"""Metrics of grading: the playbooks' names, every label value there from the start (domain.md 1.16)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from korrigo_grading.domain.statuses import STATUSES
from korrigo_grading.settings import LockSettings
from korrigo_kit.room import Runtime
from korrigo_kit.telemetry.metrics import GaugeSource

CONFLICT_TYPES = (
    "already_locked",
    "missing",
    "expired",
    "owner_mismatch",
    "token_mismatch",
    "already_graded",
    "db_contention",
)
OUTCOMES = ("success", "failed")
JOB_STATES = ("READY", "RUNNING", "DONE", "FAILED", "QUARANTINED", "CANCELLED")
LOCK_STATES = ("active", "stale", "expired")
RETRY_ATTEMPTS = ("1", "2", "3+")
# Work up to 300 s, so that a p95 above the 120 s of a range can be told (operations.md 1).
WORK_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

grading_lock_conflicts_total = Counter(
    "grading_lock_conflicts", "Refusals because of a lock, by kind.", ["conflict_type"]
)
grading_finalize_duration_seconds = Histogram(
    "grading_finalize_duration_seconds",
    "Time from the request to finalise to its end, by outcome and attempt.",
    ["status", "retry_attempt"],
    buckets=WORK_BUCKETS,
)
grading_login_failures_total = Counter("grading_login_failures", "Logins that were refused.")

for _kind in CONFLICT_TYPES:
    grading_lock_conflicts_total.labels(_kind)
for _status in OUTCOMES:
    for _attempt in RETRY_ATTEMPTS:
        grading_finalize_duration_seconds.labels(_status, _attempt)


def retry_attempt(attempt: int) -> str:
    """Return the label value of an attempt, from 1."""
    return str(attempt) if attempt < 3 else "3+"


def gauges(rt: Runtime) -> list[GaugeSource]:
    """Build the gauge sources of this room, read from its tables at scrape time."""

    def copies() -> Iterable[GaugeMetricFamily]:
        with rt.db.transaction() as tx:
            rows = tx.all(
                "SELECT status, count(*) AS n, extract(epoch FROM clock_timestamp() - min(updated_at))::float8 AS age"
                " FROM copies WHERE deleted_at IS NULL GROUP BY status"
            )
        found = {row["status"]: row for row in rows}
        by_status = GaugeMetricFamily("grading_copies_by_status", "Copies by status.", labels=["status"])
        ages = GaugeMetricFamily(
            "grading_oldest_copy_age_seconds", "Time since the longest unchanged copy changed.", labels=["status"]
        )
        for status in STATUSES:
            row = found.get(status, {"n": 0, "age": 0})
            by_status.add_metric([status], row["n"])
            ages.add_metric([status], row["age"])
        yield by_status
        yield ages

    def jobs() -> Iterable[GaugeMetricFamily]:
        with rt.db.transaction() as tx:
            rows = tx.all("SELECT kind, state, count(*) AS n FROM jobs GROUP BY kind, state")
        found = {(row["kind"], row["state"]): row["n"] for row in rows}
        kinds = sorted({*rt.room.tasks(rt), *(kind for kind, _ in found)})
        family = GaugeMetricFamily("grading_jobs", "Jobs by kind and state.", labels=["kind", "state"])
        for kind in kinds:
            for state in JOB_STATES:
                family.add_metric([kind, state], found.get((kind, state), 0))
        if kinds:
            yield family

    def locks() -> Iterable[GaugeMetricFamily]:
        stale_seconds = rt.settings.get(LockSettings).stale_seconds
        with rt.db.transaction() as tx:
            rows = tx.all(
                "SELECT CASE WHEN expires_at <= clock_timestamp() THEN 'expired'"
                " WHEN heartbeat_at < clock_timestamp() - make_interval(secs => %s) THEN 'stale'"
                " ELSE 'active' END AS state, count(*) AS n FROM copy_locks GROUP BY 1",
                (stale_seconds,),
            )
        found = {row["state"]: row["n"] for row in rows}
        family = GaugeMetricFamily("grading_locks", "Locks on copies by state.", labels=["state"])
        for state in LOCK_STATES:
            family.add_metric([state], found.get(state, 0))
        yield family

    return [copies, jobs, locks]
