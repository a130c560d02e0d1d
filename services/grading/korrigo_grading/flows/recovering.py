"""Copies that have stood still for long: which, since when, and why.

Started by `korrigo recover_stuck_copies` and by the intervention RetryFinalize.
Nothing is changed here and nothing is ever deleted: what heals a copy are the flows of the room that owns the cause.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from korrigo_grading.settings import LockSettings
from korrigo_kit.errors import NotFound
from korrigo_kit.room import Runtime


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Minutes after which a copy that has not moved counts as stuck."""

    staging_minutes: float = 60
    locked_minutes: float = 120
    in_progress_minutes: float = 5


@dataclass(frozen=True, slots=True)
class Stuck:
    """A copy that stands still; `reason` is a code of a closed list.

    STAGING: NO_PAGES (its import), ANOMALIES, WAITS_FOR_PERSON. LOCKED: LOCK_EXPIRED, LOCK_LOST, HOLDER_SILENT,
    IN_USE. GRADING_IN_PROGRESS: NOT_RENDERED, NO_REQUEST.
    """

    copy_id: str
    status: str
    reason: str
    minutes: int
    revision: int


_SQL = """
SELECT c.id::text AS copy_id, c.status, c.revision,
    (extract(epoch FROM clock_timestamp() - coalesce(c.locked_at, c.updated_at)) / 60)::int AS minutes,
    CASE c.status
        WHEN 'STAGING' THEN CASE
            WHEN c.assembly = 0 THEN 'NO_PAGES'
            WHEN EXISTS (SELECT 1 FROM copy_anomalies a WHERE a.copy_id = c.id AND NOT a.is_resolved) THEN 'ANOMALIES'
            ELSE 'WAITS_FOR_PERSON' END
        WHEN 'LOCKED' THEN CASE
            WHEN l.copy_id IS NULL THEN 'LOCK_LOST'
            WHEN l.expires_at <= clock_timestamp() THEN 'LOCK_EXPIRED'
            WHEN l.heartbeat_at < clock_timestamp() - make_interval(secs => %(stale)s) THEN 'HOLDER_SILENT'
            ELSE 'IN_USE' END
        ELSE CASE
            WHEN EXISTS (SELECT 1 FROM finalisations f WHERE f.copy_id = c.id AND f.revision = c.revision
                AND f.state = 'REQUESTED') THEN 'NOT_RENDERED'
            ELSE 'NO_REQUEST' END
    END AS reason
FROM copies c JOIN exams e ON e.id = c.exam_id LEFT JOIN copy_locks l ON l.copy_id = c.id
WHERE c.deleted_at IS NULL AND e.deleted_at IS NULL AND (
    (c.status = 'STAGING' AND c.created_at < clock_timestamp() - make_interval(secs => %(staging)s))
    OR (c.status = 'LOCKED' AND coalesce(c.locked_at, c.updated_at)
        < clock_timestamp() - make_interval(secs => %(locked)s))
    OR (c.status = 'GRADING_IN_PROGRESS' AND c.updated_at < clock_timestamp() - make_interval(secs => %(progress)s)))
ORDER BY c.updated_at, c.id
"""


def stuck(rt: Runtime, thresholds: Thresholds) -> list[Stuck]:
    """List the copies that have not moved for longer than the thresholds, longest first."""
    values = {
        "stale": rt.settings.get(LockSettings).stale_seconds,
        "staging": thresholds.staging_minutes * 60,
        "locked": thresholds.locked_minutes * 60,
        "progress": thresholds.in_progress_minutes * 60,
    }
    with rt.db.transaction() as tx:
        return [Stuck(**row) for row in tx.all(_SQL, values)]


@dataclass(frozen=True, slots=True)
class Failed:
    """A copy that is GRADING_FAILED, and the reason that its newest request ended with."""

    copy_id: str
    reason: str | None


def failed(rt: Runtime, since: datetime | None) -> list[Failed]:
    """List the copies that are GRADING_FAILED, longest first; with `since` only those that failed later."""
    with rt.db.transaction() as tx:
        rows = tx.all(
            "SELECT c.id::text AS copy_id, (SELECT f.error_reason FROM finalisations f WHERE f.copy_id = c.id"
            " AND f.revision = c.revision ORDER BY f.request DESC LIMIT 1) AS reason"
            " FROM copies c JOIN exams e ON e.id = c.exam_id WHERE c.status = 'GRADING_FAILED'"
            " AND c.deleted_at IS NULL AND e.deleted_at IS NULL"
            " AND (%(since)s::timestamptz IS NULL OR c.updated_at >= %(since)s) ORDER BY c.updated_at, c.id",
            {"since": since},
        )
    return [Failed(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Undone:
    """A copy without its final PDF, and the newest request for it; 0 = none was made."""

    copy_id: str
    status: str
    revision: int
    request: int


_UNDONE = """
SELECT c.id::text AS copy_id, c.status, c.revision, coalesce((SELECT max(f.request) FROM finalisations f
    WHERE f.copy_id = c.id AND f.revision = c.revision), 0) AS request
FROM copies c JOIN exams e ON e.id = c.exam_id WHERE c.deleted_at IS NULL AND e.deleted_at IS NULL
"""


def undone_copy(rt: Runtime, copy_id: str) -> Undone:
    """Look at one copy, whatever its status; raises NotFound (COPY_NOT_FOUND)."""
    with rt.db.transaction() as tx:
        row = tx.one(f"{_UNDONE} AND c.id = %s", (copy_id,))
    if row is None:
        raise NotFound("COPY_NOT_FOUND", "there is no such copy")
    return Undone(**row)


def undone(rt: Runtime, exam_id: str | None) -> list[Undone]:
    """List the copies, of one exam or of all, that failed or have been in work for a minute, longest first."""
    with rt.db.transaction() as tx:
        rows = tx.all(
            f"{_UNDONE} AND (c.status = 'GRADING_FAILED' OR c.status = 'GRADING_IN_PROGRESS'"
            "   AND c.updated_at < clock_timestamp() - make_interval(secs => %(after)s))"
            " AND (%(exam)s::uuid IS NULL OR c.exam_id = %(exam)s::uuid) ORDER BY c.updated_at, c.id",
            {"exam": exam_id, "after": rt.settings.jobs.stuck_seconds},
        )
    return [Undone(**row) for row in rows]
