"""Imports that ended badly are tried again, imports that stand still are rung again, and none stays without a job.

Started by `korrigo retry_failed_tasks`, `korrigo recover_stuck_copies`, RetryImport and the room's sweep. A scan that
was REJECTED is not retried: the document itself was refused, and would be again. But for one that ran out of time
(its job is QUARANTINED): a machine that is less busy may get through it, and until somebody asks for that its copies
count as stuck.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from korrigo_ingest import events
from korrigo_kit import jobs
from korrigo_kit.db import Tx
from korrigo_kit.errors import NotFound, StateConflict
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

log = logging.getLogger("grading.import")

_KIND = "import"
_GONE = "GONE"
_SCAN = (
    "s.id::text AS id, s.exam_id::text AS exam_id, s.state, s.error_reason, s.job_id::text AS job_id,"
    f" coalesce(j.state, '{_GONE}') AS job_state, s.updated_at FROM scans s LEFT JOIN jobs j ON j.id = s.job_id"
)

_IS_OPEN = "s.state IN ('RECEIVED', 'RUNNING')"
_RETRIABLE = (
    "(s.state = 'FAILED' AND j.state IN ('FAILED', 'QUARANTINED') OR s.state = 'REJECTED' AND j.state = 'QUARANTINED'"
    f" OR {_IS_OPEN} AND (j.state IS NULL OR j.state IN ('DONE', 'FAILED', 'QUARANTINED')))"
)
# Long enough that an import which loses its job again and again does not keep the sweeper busy, short enough that
# it is healed before it counts as stuck.
_JOBLESS_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Import:
    """An import as an operator sees it."""

    id: str
    exam_id: str
    state: str
    error_reason: str | None
    job_id: str
    job_state: str
    updated_at: datetime

    @property
    def may_be_retried(self) -> bool:
        """Tell whether the import ended badly, and not for good, or waits for a job that there is not."""
        if self.job_state in ("READY", "RUNNING"):
            return False
        return self.state in ("FAILED", "RECEIVED", "RUNNING") or (
            self.state == "REJECTED" and self.job_state == "QUARANTINED"
        )


def failed(rt: Runtime, since: datetime | None) -> list[Import]:
    """List the imports that failed, oldest first; with `since` only those that ended later."""
    with rt.db.transaction() as tx:
        rows = tx.all(
            f"SELECT {_SCAN} WHERE {_RETRIABLE} AND (%(since)s::timestamptz IS NULL"
            " OR coalesce(s.finished_at, s.updated_at) >= %(since)s) ORDER BY coalesce(s.finished_at, s.updated_at)",
            {"since": since},
        )
    return [Import(**row) for row in rows]


def of_copies(rt: Runtime, copy_ids: list[str]) -> dict[str, Import]:
    """Tell from which import each of these copies came."""
    with rt.db.transaction() as tx:
        rows = tx.all(
            f"SELECT c.copy_id::text AS copy_id, {_SCAN} JOIN scan_copies c ON c.scan_id = s.id"
            " WHERE c.copy_id = ANY(%s::uuid[])",
            (copy_ids,),
        )
    return {row.pop("copy_id"): Import(**row) for row in rows}


def of_scan(rt: Runtime, scan_id: str) -> Import:
    """Look at one import; raises NotFound (SCAN_NOT_FOUND)."""
    with rt.db.transaction() as tx:
        row = tx.one(f"SELECT {_SCAN} WHERE s.id = %s", (scan_id,))
    if row is None:
        raise NotFound("SCAN_NOT_FOUND", "there is no such scan")
    return Import(**row)


def open_ones(rt: Runtime, exam_id: str | None) -> list[Import]:
    """List the imports, of one exam or of all, that failed or have waited for a minute, oldest first."""
    with rt.db.transaction() as tx:
        rows = tx.all(
            f"SELECT {_SCAN} WHERE ({_RETRIABLE}"
            f"   OR {_IS_OPEN} AND j.state = 'READY'"
            "   AND j.created_at < clock_timestamp() - make_interval(secs => %(after)s))"
            " AND (%(exam)s::uuid IS NULL OR s.exam_id = %(exam)s::uuid) ORDER BY s.updated_at, s.id",
            {"exam": exam_id, "after": rt.settings.jobs.stuck_seconds},
        )
    return [Import(**row) for row in rows]


def retry(rt: Runtime, scan_id: str, actor_id: str = SYSTEM_ACTOR) -> None:
    """Have a failed import done again with fresh counters; raises NotFound and StateConflict (NOTHING_TO_RETRY)."""
    with rt.db.transaction(actor=actor_id) as tx:
        scan = _held(tx, scan_id)
        if not Import(**scan).may_be_retried:
            raise StateConflict("NOTHING_TO_RETRY", f"the import is {scan['state']}, it did not fail")
        _again(tx, scan, actor_id)


def give_jobs(rt: Runtime) -> int:
    """Give a new job to every import whose own is gone, or over without it; returns how many. Work of the sweep.

    One whose job failed is left to a person: it would fail again and again.
    """
    with rt.db.transaction() as tx:
        rows = tx.all(
            f"SELECT {_SCAN} WHERE {_IS_OPEN} AND (j.state IS NULL OR j.state = 'DONE')"
            " AND s.updated_at < clock_timestamp() - make_interval(secs => %s) ORDER BY s.updated_at FOR UPDATE OF s"
            " SKIP LOCKED",
            (_JOBLESS_SECONDS,),
        )
        for scan in rows:
            log.warning("scan %s had no job any more: it gets another", scan["id"], extra={"scan_id": scan["id"]})
            _again(tx, scan, SYSTEM_ACTOR)
    return len(rows)


def _again(tx: Tx, scan: dict[str, Any], actor_id: str) -> None:
    """Make the import's job due again, or another where there is none to make due."""
    if not jobs.retry(tx, scan["job_id"]):
        payload = {"scan_id": scan["id"]}
        scan["job_id"] = jobs.enqueue(tx, kind=_KIND, subject_id=scan["id"], payload=payload)
    tx.run(
        "UPDATE scans SET state = 'RECEIVED', job_id = %s, error_reason = NULL, error_message = NULL,"
        " finished_at = NULL, updated_at = clock_timestamp() WHERE id = %s",
        (scan["job_id"], scan["id"]),
    )
    events.scan_retried(tx, scan, actor_id)


def ring(rt: Runtime, scan_id: str, actor_id: str = SYSTEM_ACTOR) -> bool:
    """Ring again at once for an import that waits; False when it does not wait. Raises NotFound (SCAN_NOT_FOUND)."""
    with rt.db.transaction(actor=actor_id) as tx:
        scan = _held(tx, scan_id)
        if not jobs.hurry(tx, scan["job_id"]):
            return False
        events.scan_retried(tx, scan, actor_id)
    return True


def _held(tx: Tx, scan_id: str) -> dict[str, Any]:
    scan = tx.one(f"SELECT {_SCAN} WHERE s.id = %s FOR UPDATE OF s", (scan_id,))
    if scan is None:
        raise NotFound("SCAN_NOT_FOUND", "there is no such scan")
    return scan
