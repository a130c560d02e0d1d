"""Metrics of grading: the playbooks' names, every label value there from the start (domain.md 1.16)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from korrigo_grading.domain.statuses import GRADING_FAILED, STATUSES
from korrigo_grading.settings import LockSettings
from korrigo_kit.room import Runtime
from korrigo_kit.telemetry.metrics import WORK_BUCKETS, GaugeSource, counter, gauge, histogram

CONFLICT_TYPES = (
    "already_locked",
    "missing",
    "expired",
    "owner_mismatch",
    "token_mismatch",
    "already_graded",
    "db_contention",
)

grading_lock_conflicts_total = counter(
    "grading_lock_conflicts_total", "Refusals because of a lock, by kind.", conflict_type=CONFLICT_TYPES
)
grading_finalize_duration_seconds = histogram(
    "grading_finalize_duration_seconds",
    "Time from the request to finalise to its end, by outcome and attempt.",
    WORK_BUCKETS,
    status=("success", "failed"),
    retry_attempt=("1", "2", "3+"),
)
grading_login_failures_total = counter("grading_login_failures_total", "Logins that were refused.")
copies_by_status = gauge("grading_copies_by_status", "Copies by status.", status=STATUSES)
oldest_copy_age_seconds = gauge(
    "grading_oldest_copy_age_seconds", "Time since the longest unchanged copy of a status changed.", status=STATUSES
)
copies_retries_exhausted = gauge(
    "grading_copies_retries_exhausted", "Copies that failed to be finalised and that no automatic attempt follows."
)
locks_by_state = gauge("grading_locks", "Locks on copies by state.", state=("active", "stale", "expired"))
backup_at = gauge(
    "grading_backup_last_success_timestamp_seconds",
    "When the last good backup was made; before the first, when the product was installed.",
)

# Heartbeat that a backup writes once it was verified.
BACKUP = "backup"


def retry_attempt(attempt: int) -> str:
    """Return the label value of an attempt, from 1."""
    return str(attempt) if attempt < 3 else "3+"


def gauges(rt: Runtime) -> list[GaugeSource]:
    """Build the gauge sources of this room, read from its tables at scrape time."""

    def copies() -> Iterable[Metric]:
        with rt.db.transaction() as tx:
            rows = tx.all(
                "SELECT status, count(*) AS n, extract(epoch FROM clock_timestamp() - min(updated_at))::float8 AS age"
                " FROM copies WHERE deleted_at IS NULL GROUP BY status"
            )
        numbers: dict[tuple[str, ...], float] = {(row["status"],): float(row["n"]) for row in rows}
        yield copies_by_status.family(numbers)
        yield oldest_copy_age_seconds.family({(row["status"],): row["age"] for row in rows})
        yield copies_retries_exhausted.value(numbers.get((GRADING_FAILED,), 0.0))

    def locks() -> Iterable[Metric]:
        stale_seconds = rt.settings.get(LockSettings).stale_seconds
        with rt.db.transaction() as tx:
            rows = tx.all(
                "SELECT CASE WHEN expires_at <= clock_timestamp() THEN 'expired'"
                " WHEN heartbeat_at < clock_timestamp() - make_interval(secs => %s) THEN 'stale'"
                " ELSE 'active' END AS state, count(*) AS n FROM copy_locks GROUP BY 1",
                (stale_seconds,),
            )
        yield locks_by_state.family({(row["state"],): float(row["n"]) for row in rows})

    def backup() -> Iterable[Metric]:
        with rt.db.transaction() as tx:
            # The account that acts when no person does was made by the first migration.
            row = tx.row(
                "SELECT extract(epoch FROM coalesce((SELECT beat_at FROM heartbeats WHERE name = %s),"
                " (SELECT min(created_at) FROM users WHERE is_system)))::float8 AS at",
                (BACKUP,),
            )
        yield backup_at.value(row["at"])

    return [copies, locks, backup]
