"""Imports that are stuck, for the metric, the command line and the API (kit.stuck decides what that means)."""

from __future__ import annotations

from korrigo_kit import stuck
from korrigo_kit.db import Tx
from korrigo_kit.room import Runtime
from korrigo_kit.stuck import Stuck

_KIND = "import"


def found(rt: Runtime) -> list[Stuck]:
    """List stuck imports, oldest first; copies that were not counted yet stand as one."""
    settings = rt.settings.jobs
    with rt.db.transaction() as tx:
        listed = [
            Stuck(
                room=rt.name,
                stage="import",
                reason=job.reason,
                subject_type="scan",
                subject_id=job.subject_id,
                since=job.since,
                copies=_waiting(tx, job.subject_id),
                job_id=job.id,
                attempts=job.attempts,
                lost_leases=job.lost_leases,
                error_reason=job.error_reason,
            )
            for job in stuck.stuck_jobs(tx, _KIND, settings)
        ]
        listed += _without_job(tx, rt.name, settings.stuck_seconds)
    return [item for item in stuck.oldest_first(listed) if item.copies]


def _waiting(tx: Tx, scan_id: str) -> int:
    row = tx.row(
        "SELECT count(*) AS staged, count(*) FILTER (WHERE assembly = 0) AS waiting FROM scan_copies"
        " WHERE scan_id = %s",
        (scan_id,),
    )
    return int(row["waiting"]) if row["staged"] else 1


def _without_job(tx: Tx, room: str, after_seconds: float) -> list[Stuck]:
    rows = tx.all(
        "SELECT s.id::text AS id, s.updated_at, s.job_id::text AS job_id FROM scans s"
        " WHERE s.state IN ('RECEIVED', 'RUNNING')"
        " AND s.updated_at < clock_timestamp() - make_interval(secs => %s)"
        " AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = s.job_id"
        "   AND j.state IN ('READY', 'RUNNING', 'QUARANTINED'))",
        (after_seconds,),
    )
    return [
        Stuck(
            room,
            "import",
            stuck.LOST_TASK,
            "scan",
            row["id"],
            row["updated_at"],
            copies=max(1, _waiting(tx, row["id"])),
            job_id=row["job_id"],
        )
        for row in rows
    ]
