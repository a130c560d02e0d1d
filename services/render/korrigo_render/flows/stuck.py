"""Renderings that are stuck, for the metric, the command line and the API (kit.stuck decides what that means).

A rendering whose attempts are used up is not listed here: grading was told, and lists the copy.
"""

from __future__ import annotations

from korrigo_kit import stuck
from korrigo_kit.room import Runtime
from korrigo_kit.stuck import Stuck

_KIND = "render"


def found(rt: Runtime) -> list[Stuck]:
    """List the copies whose rendering is stuck, oldest first."""
    with rt.db.transaction() as tx:
        jobs = stuck.stuck_jobs(tx, _KIND, rt.settings.jobs)
    return [
        Stuck(
            room=rt.name,
            stage="finalize",
            reason=job.reason,
            subject_type="copy",
            subject_id=job.subject_id,
            since=job.since,
            job_id=job.id,
            attempts=job.attempts,
            lost_leases=job.lost_leases,
            error_reason=job.error_reason,
        )
        for job in jobs
        if job.reason != stuck.RETRIES_EXHAUSTED
    ]
