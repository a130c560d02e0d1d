"""Imports that are stuck, for the metric, the command line and the API (kit.stuck decides what that means)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from korrigo_kit import stuck
from korrigo_kit.db import Tx
from korrigo_kit.room import Runtime
from korrigo_kit.stuck import Stuck

_KIND = "import"


def found(rt: Runtime) -> list[Stuck]:
    """List stuck imports, oldest first; copies that were not counted yet stand as one."""
    settings = rt.settings.jobs
    with rt.db.transaction() as tx:
        jobs = stuck.stuck_jobs(tx, _KIND, settings)
        listed = [
            Stuck(
                room=rt.name,
                stage="import",
                reason=job.reason,
                subject_type="scan",
                subject_id=job.subject_id,
                since=job.since,
                job_id=job.id,
                attempts=job.attempts,
                lost_leases=job.lost_leases,
                error_reason=job.error_reason,
            )
            for job in jobs
        ]
        orphans = _without_job(tx, rt.name, settings.stuck_seconds)
        known = _scans(tx, [item.subject_id for item in (*listed, *orphans)])
    waiting = [replace(item, copies=_copies(known, item.subject_id)) for item in listed]
    waiting += [replace(item, copies=max(1, _copies(known, item.subject_id))) for item in orphans]
    return [
        replace(item, exam_id=known[item.subject_id]["exam_id"] if item.subject_id in known else "")
        for item in stuck.oldest_first(waiting)
        if item.copies
    ]


def _copies(known: Mapping[str, Mapping[str, Any]], scan_id: str) -> int:
    scan = known.get(scan_id)
    return int(scan["waiting"]) if scan is not None and scan["staged"] else 1


def _scans(tx: Tx, scan_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Look up the exam of each scan, and how many of its copies wait; one statement, however many are stuck."""
    rows = tx.all(
        "SELECT s.id::text AS id, s.exam_id::text AS exam_id, count(c.copy_id) AS staged,"
        " count(c.copy_id) FILTER (WHERE c.assembly = 0) AS waiting"
        " FROM scans s LEFT JOIN scan_copies c ON c.scan_id = s.id WHERE s.id = ANY(%s::uuid[]) GROUP BY s.id",
        (list(scan_ids),),
    )
    return {row["id"]: row for row in rows}


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
        Stuck(room, "import", stuck.LOST_TASK, "scan", row["id"], row["updated_at"], job_id=row["job_id"])
        for row in rows
    ]
