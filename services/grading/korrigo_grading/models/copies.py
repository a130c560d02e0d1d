"""Copies: reading one with its exam and its lock, holding it for a change, and every change of its status.

Row locks are taken in one order by all flows, so that they cannot deadlock: the copy (FOR NO KEY UPDATE, which lets
the foreign keys of annotation writes pass), then its lock row, then the stream of its events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from korrigo_grading.domain import scheme
from korrigo_grading.domain.locks import Lock
from korrigo_kit.db import Tx

# Decimals in tables, whole hundredths everywhere else (decisions.md, Decimals).
_HUNDREDTHS = "(({0}) * 100)::bigint"

_SELECT = f"""
SELECT c.id::text AS id, c.exam_id::text AS exam_id, c.anonymous_id, c.status, c.version, c.revision, c.assembly,
    c.source_sha256, c.assigned_corrector_id::text AS assigned_corrector_id, c.fence,
    c.locked_at, c.locked_by::text AS locked_by, c.grading_retries, c.grading_error_message,
    {_HUNDREDTHS.format("c.final_score")} AS final_score, c.created_at, c.updated_at, c.graded_at,
    e.name AS exam_name, e.date AS exam_date, e.grading_structure, e.auto_validate,
    {_HUNDREDTHS.format("e.max_score")} AS max_score, e.corrector_ids::text[] AS corrector_ids,
    l.owner_id::text AS lock_owner_id, coalesce(u.username, '') AS lock_owner_name, l.client_id AS lock_client_id,
    l.token_hash AS lock_token_hash, l.fence AS lock_fence, l.marking AS lock_marking,
    l.ttl_seconds AS lock_ttl_seconds, l.acquired_at AS lock_acquired_at, l.heartbeat_at AS lock_heartbeat_at,
    l.expires_at AS lock_expires_at, clock_timestamp() AS now
FROM copies c
JOIN exams e ON e.id = c.exam_id
LEFT JOIN copy_locks l ON l.copy_id = c.id
LEFT JOIN users u ON u.id = l.owner_id
"""
_ALIVE = "c.deleted_at IS NULL AND e.deleted_at IS NULL"


@dataclass(frozen=True)
class Copy:
    """A copy as one statement saw it, with what its exam says and its lock."""

    id: str
    exam_id: str
    anonymous_id: str
    status: str
    version: int
    revision: int
    assembly: int
    source_sha256: str | None
    assigned_corrector_id: str | None
    fence: int
    locked_at: datetime | None
    locked_by: str | None
    grading_retries: int
    grading_error_message: str | None
    final_score: int | None
    created_at: datetime
    updated_at: datetime
    graded_at: datetime | None
    exam_name: str
    exam_date: str
    grading_structure: Sequence[Mapping[str, Any]]
    auto_validate: bool
    max_score: int
    corrector_ids: tuple[str, ...]
    lock: Lock | None
    now: datetime

    @cached_property
    def questions(self) -> tuple[scheme.Question, ...]:
        """The marking scheme."""
        return scheme.scheme(self.grading_structure, self.max_score)

    @cached_property
    def leaves(self) -> list[scheme.Leaf]:
        """The questions that are scored."""
        return scheme.leaves(self.questions)


def _lock(row: dict[str, Any]) -> Lock | None:
    values = {key: row.pop(f"lock_{key}") for key in Lock.__dataclass_fields__ if key != "now"}
    return None if values["owner_id"] is None else Lock(**values, now=row["now"])


def _copy(row: dict[str, Any]) -> Copy:
    lock = _lock(row)
    row["corrector_ids"] = tuple(row["corrector_ids"])
    row["exam_date"] = row["exam_date"].isoformat()
    return Copy(**row, lock=lock)


def read(tx: Tx, copy_id: str) -> Copy | None:
    """Read a copy that was not deleted, nor its exam."""
    row = tx.one(f"{_SELECT} WHERE c.id = %s AND {_ALIVE}", (copy_id,))
    return _copy(row) if row else None


def hold(tx: Tx, copy_id: str, *, even_deleted: bool = False) -> Copy | None:
    """Lock a copy's row for a change of its status, then read it.

    Two statements, because a row that had to be waited for would come with its neighbours as they were before.
    """
    if tx.one("SELECT 1 FROM copies WHERE id = %s FOR NO KEY UPDATE", (copy_id,)) is None:
        return None
    row = tx.one(f"{_SELECT} WHERE c.id = %s AND (%s OR ({_ALIVE}))", (copy_id, even_deleted))
    return _copy(row) if row else None


def page(
    tx: Tx,
    exam_id: str,
    *,
    status: str | None,
    marker_id: str | None,
    after: tuple[str, str] | None,
    limit: int,
) -> list[Copy]:
    """List an exam's copies, oldest first; with `marker_id` only those assigned to him or to nobody."""
    rows = tx.all(
        f"{_SELECT} WHERE c.exam_id = %(exam_id)s AND {_ALIVE} AND (%(status)s::text IS NULL OR c.status = %(status)s)"
        " AND (%(marker)s::uuid IS NULL OR c.assigned_corrector_id IS NULL OR c.assigned_corrector_id = %(marker)s)"
        " AND (%(at)s::timestamptz IS NULL OR (c.created_at, c.id) > (%(at)s::timestamptz, %(id)s::uuid))"
        " ORDER BY c.created_at, c.id LIMIT %(limit)s",
        {
            "exam_id": exam_id,
            "status": status,
            "marker": marker_id,
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    return [_copy(row) for row in rows]


def staged(tx: Tx, exam_id: str) -> list[str]:
    """List the ids of an exam's copies that wait for validation."""
    rows = tx.all(
        "SELECT id::text AS id FROM copies WHERE exam_id = %s AND status = 'STAGING' AND deleted_at IS NULL"
        " ORDER BY created_at, id",
        (exam_id,),
    )
    return [row["id"] for row in rows]


def correctors(tx: Tx, exam_id: str) -> tuple[str, ...] | None:
    """List who may mark an exam; None when there is no such exam."""
    row = tx.one("SELECT corrector_ids::text[] AS ids FROM exams WHERE id = %s AND deleted_at IS NULL", (exam_id,))
    return tuple(row["ids"]) if row else None


_CHANGE = """
UPDATE copies SET status = %(status)s, version = version + 1, updated_at = clock_timestamp() {more}
WHERE id = %(id)s AND status = ANY(%(was)s)
"""


def _change(tx: Tx, copy: Copy, status: str, more: str = "", **values: Any) -> bool:
    sql = _CHANGE.format(more=f", {more}" if more else "")
    return tx.run(sql, {"id": copy.id, "status": status, "was": [copy.status], **values}) == 1


def validated(tx: Tx, copy: Copy, status: str) -> bool:
    """Write that a copy was found complete."""
    return _change(tx, copy, status, "validated_at = clock_timestamp()")


def unlocked(tx: Tx, copy: Copy, status: str) -> bool:
    """Write that a copy's lock ended."""
    return _change(tx, copy, status, "locked_at = NULL, locked_by = NULL")


def finalising(tx: Tx, copy: Copy, status: str) -> bool:
    """Write that the final PDF was asked for; the count of failures starts again."""
    return _change(tx, copy, status, "grading_retries = 0, grading_error_message = NULL")


def graded(tx: Tx, copy: Copy, status: str, *, score: int) -> bool:
    """Write that the final PDF exists; `score` in hundredths."""
    return _change(
        tx,
        copy,
        status,
        "graded_at = clock_timestamp(), final_score = %(score)s / 100.0, grading_error_message = NULL",
        score=score,
    )


def failed_attempt(tx: Tx, copy: Copy, status: str, *, retries: int, message: str) -> bool:
    """Write that an attempt at the final PDF failed; the status changes only after the last one."""
    return _change(
        tx,
        copy,
        status,
        "grading_retries = %(retries)s, grading_error_message = %(message)s",
        retries=retries,
        message=message,
    )


def reopened(tx: Tx, copy: Copy, status: str) -> bool:
    """Write that a graded copy goes back to marking under the next revision."""
    return _change(
        tx,
        copy,
        status,
        "revision = revision + 1, final_score = NULL, graded_at = NULL, grading_retries = 0,"
        " locked_at = NULL, locked_by = NULL",
    )


def blocking_anomalies(tx: Tx, copy_id: str) -> list[str]:
    """List the codes of a copy's unresolved anomalies."""
    rows = tx.all(
        "SELECT code FROM copy_anomalies WHERE copy_id = %s AND NOT is_resolved ORDER BY position", (copy_id,)
    )
    return [row["code"] for row in rows]
