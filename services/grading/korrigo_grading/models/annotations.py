"""Annotations: each write is one statement that checks the lease itself (models.locks.HELD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from korrigo_grading.domain.scores import Delta
from korrigo_grading.models.locks import HELD
from korrigo_kit.db import Tx

# The marking that counts, until there is double marking (decisions.md, Markings).
COUNTING_MARKING = 1


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation as stored; `score_delta` in hundredths, `page_index` None when its page left the copy."""

    id: str
    page_id: str
    page_index: int | None
    x: float
    y: float
    w: float
    h: float
    type: str
    content: str
    score_delta: int | None
    question_id: str | None
    strokes: list[dict[str, Any]] | None
    created_by: str
    created_at: datetime
    updated_at: datetime
    version: int
    is_deleted: bool


_COLUMNS = (
    "a.id::text AS id, a.page_id::text AS page_id, {page}, a.x, a.y, a.w, a.h, a.type, a.content,"
    " (a.score_delta * 100)::bigint AS score_delta, a.question_id, a.strokes, a.created_by::text AS created_by,"
    " a.created_at, a.updated_at, a.version, a.deleted_at IS NOT NULL AS is_deleted"
)
_SELECT = (
    f"SELECT {_COLUMNS.format(page='p.page_index')} FROM annotations a"
    " LEFT JOIN copy_pages p ON p.copy_id = a.copy_id AND p.page_id = a.page_id"
)

_CREATE = f"""
{HELD}, target AS (
    SELECT h.copy_id, h.marking, h.fence, p.page_id, p.page_index
    FROM held h JOIN copies c ON c.id = h.copy_id JOIN exams e ON e.id = c.exam_id
        -- A lock does not outlive the right to mark.
        AND (%(marks_any)s OR e.corrector_ids @> ARRAY[%(user_id)s::uuid])
    JOIN copy_pages p ON p.copy_id = h.copy_id
        AND (%(page_id)s::uuid IS NULL OR p.page_id = %(page_id)s::uuid)
        AND (%(page_index)s::integer IS NULL OR p.page_index = %(page_index)s::integer)
    WHERE %(question_id)s::text IS NULL
        OR jsonb_path_exists(e.grading_structure, '$.** ? (@.id == $q && !exists(@.children))',
            jsonb_build_object('q', %(question_id)s::text))
), made AS (
    INSERT INTO annotations (copy_id, id, marking, page_id, x, y, w, h, type, content, score_delta, question_id,
        strokes, fence, created_by)
    SELECT copy_id, %(id)s, marking, page_id, %(x)s, %(y)s, %(w)s, %(h)s, %(type)s, %(content)s,
        %(score_delta)s / 100.0, %(question_id)s, %(strokes)s, fence, %(user_id)s
    FROM target
    ON CONFLICT (copy_id, id) DO NOTHING
    RETURNING *
)
SELECT {_COLUMNS.format(page="t.page_index")} FROM made a CROSS JOIN target t
"""

_UPDATE = f"""
{HELD}
UPDATE annotations a SET page_id = %(page_id)s, x = %(x)s, y = %(y)s, w = %(w)s, h = %(h)s, type = %(type)s,
    content = %(content)s, score_delta = %(score_delta)s / 100.0, question_id = %(question_id)s,
    strokes = %(strokes)s, fence = h.fence, version = a.version + 1, updated_at = clock_timestamp()
FROM held h
WHERE a.copy_id = h.copy_id AND a.marking = h.marking AND a.id = %(id)s AND a.version = %(version)s
    AND a.deleted_at IS NULL
RETURNING {_COLUMNS.format(page="%(page_index)s::integer AS page_index")}
"""

_DELETE = f"""
{HELD}
UPDATE annotations a SET deleted_at = clock_timestamp(), updated_at = clock_timestamp(), version = a.version + 1,
    fence = h.fence
FROM held h
WHERE a.copy_id = h.copy_id AND a.marking = h.marking AND a.id = %(id)s AND a.version = %(version)s
    AND a.deleted_at IS NULL
RETURNING a.version
"""


def _values(values: dict[str, Any]) -> dict[str, Any]:
    strokes = values["strokes"]
    return {**values, "strokes": orjson.dumps(strokes).decode() if strokes is not None else None}


def create(tx: Tx, values: dict[str, Any]) -> Annotation | None:
    """Insert an annotation; None when lease, page or question are not right, or the id is there."""
    row = tx.one(_CREATE, _values(values))
    return Annotation(**row) if row else None


def update(tx: Tx, values: dict[str, Any]) -> Annotation | None:
    """Replace an annotation of a known version; None when lease or version are not right (any more)."""
    row = tx.one(_UPDATE, _values(values))
    return Annotation(**row) if row else None


def delete(tx: Tx, values: dict[str, Any]) -> bool:
    """Turn an annotation of a known version into a tombstone."""
    return tx.one(_DELETE, values) is not None


def read(tx: Tx, copy_id: str, annotation_id: str) -> Annotation | None:
    """Read an annotation, tombstones included."""
    row = tx.one(f"{_SELECT} WHERE a.copy_id = %s AND a.id = %s", (copy_id, annotation_id))
    return Annotation(**row) if row else None


def page(
    tx: Tx, copy_id: str, *, after: tuple[str, str] | None = None, limit: int | None = None
) -> Sequence[Annotation]:
    """List a copy's annotations in the order of their making; all without a limit."""
    rows = tx.all(
        f"{_SELECT} WHERE a.copy_id = %(copy_id)s AND a.marking = %(marking)s AND a.deleted_at IS NULL"
        " AND (%(at)s::timestamptz IS NULL OR (a.created_at, a.id) > (%(at)s::timestamptz, %(id)s::uuid))"
        " ORDER BY a.created_at, a.id LIMIT %(limit)s",
        {
            "copy_id": copy_id,
            "marking": COUNTING_MARKING,
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    return [Annotation(**row) for row in rows]


def deltas(tx: Tx, copy_id: str) -> list[Delta]:
    """List the points that a copy's annotations add or take away."""
    rows = tx.all(
        "SELECT (score_delta * 100)::bigint AS hundredths, question_id FROM annotations"
        " WHERE copy_id = %s AND marking = %s AND deleted_at IS NULL AND score_delta IS NOT NULL",
        (copy_id, COUNTING_MARKING),
    )
    return [Delta(**row) for row in rows]
