"""Rows of old exams: read as a whole, and what of them is destroyed. Used by `flows.archiving` only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from korrigo_grading.models import exams
from korrigo_grading.models.exams import Exam
from korrigo_kit.db import Tx

_COPY = (
    "id::text AS id, anonymous_id, status, revision, version, assigned_corrector_id::text AS assigned_corrector_id,"
    " created_at, updated_at, graded_at, (final_score * 100)::bigint AS final_hundredths,"
    " deleted_at IS NOT NULL AS is_deleted"
)
# owner_id of these kinds begins with the copy.
_BY_COPY = ("copy_source", "final_pdf")
_REFERENCES = (
    "(owner_kind = ANY(%(kinds)s) AND split_part(owner_id, '/', 1) = ANY(%(ids)s)) OR (owner_kind = 'manifest'"
    " AND owner_id IN (SELECT id::text FROM finalisations WHERE copy_id = ANY(%(ids)s::uuid[])))"
)
_MARKS = {
    "annotations": (
        "SELECT copy_id::text AS copy_id, to_jsonb(a) - 'copy_id' AS document FROM annotations a"
        " WHERE copy_id = ANY(%s::uuid[]) ORDER BY created_at, id"
    ),
    "scores": (
        "SELECT copy_id::text AS copy_id, to_jsonb(s) - 'copy_id' AS document FROM scores s"
        " WHERE copy_id = ANY(%s::uuid[]) ORDER BY marking"
    ),
    "pages": (
        "SELECT copy_id::text AS copy_id, to_jsonb(p) - 'copy_id' AS document FROM copy_pages p"
        " WHERE copy_id = ANY(%s::uuid[]) ORDER BY page_index"
    ),
}


def between(tx: Tx, first: date, last: date) -> list[dict[str, Any]]:
    """List exams of these days with how far their copies are."""
    return tx.all(
        "SELECT e.id::text AS id, e.name, e.date, e.archived_at IS NOT NULL AS is_archived,"
        " count(c.id) AS copies, count(c.id) FILTER (WHERE c.status <> 'GRADED' AND c.deleted_at IS NULL) AS unfinished"
        " FROM exams e LEFT JOIN copies c ON c.exam_id = e.id"
        " WHERE e.date BETWEEN %s AND %s AND (e.deleted_at IS NULL OR e.archived_at IS NOT NULL)"
        " GROUP BY e.id ORDER BY e.date, e.id",
        (first, last),
    )


def exam(tx: Tx, exam_id: str) -> dict[str, Any] | None:
    """Read an exam as a document."""
    row = tx.one("SELECT to_jsonb(e) AS document FROM exams e WHERE id = %s AND deleted_at IS NULL", (exam_id,))
    return row["document"] if row else None


def hold(tx: Tx, exam_id: str) -> dict[str, Any] | None:
    """Keep copies from being added until the commit, and tell whether it is archived."""
    return tx.one("SELECT archived_at IS NOT NULL AS is_archived FROM exams WHERE id = %s FOR UPDATE", (exam_id,))


def copies(tx: Tx, exam_id: str, *, is_held: bool = False) -> list[dict[str, Any]]:
    """Read every copy that an exam ever had; held, nobody changes one until the commit."""
    hold_them = " FOR UPDATE" if is_held else ""
    return tx.all(f"SELECT {_COPY} FROM copies WHERE exam_id = %s ORDER BY id{hold_them}", (exam_id,))


def marks(tx: Tx, copy_ids: Sequence[str]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Read annotations, scores and pages, by kind and copy."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind, statement in _MARKS.items():
        by_copy: dict[str, list[dict[str, Any]]] = {}
        for row in tx.all(statement, (list(copy_ids),)):
            by_copy.setdefault(row["copy_id"], []).append(row["document"])
        found[kind] = by_copy
    return found


def finals(tx: Tx, copy_ids: Sequence[str]) -> list[dict[str, Any]]:
    """List the final PDFs of every graded revision."""
    return tx.all(
        "SELECT copy_id::text AS copy_id, revision, final_sha256 AS sha256, final_size AS size FROM finalisations"
        " WHERE copy_id = ANY(%s::uuid[]) AND state = 'SUCCEEDED' ORDER BY copy_id, revision",
        (list(copy_ids),),
    )


def blobs(tx: Tx, copy_ids: Sequence[str]) -> list[str]:
    """List the content that these copies refer to."""
    rows = tx.all(
        f"SELECT DISTINCT sha256 FROM blob_refs WHERE {_REFERENCES} ORDER BY sha256",
        {"kinds": list(_BY_COPY), "ids": list(copy_ids)},
    )
    return [row["sha256"] for row in rows]


def drop_references(tx: Tx, copy_ids: Sequence[str]) -> None:
    """Refer to nothing any more on behalf of these copies."""
    tx.run(f"DELETE FROM blob_refs WHERE {_REFERENCES}", {"kinds": list(_BY_COPY), "ids": list(copy_ids)})


def drop_marks(tx: Tx, copy_ids: Sequence[str]) -> None:
    """Destroy annotations, scores and totals; the copies become tombstones."""
    ids = (list(copy_ids),)
    for table in ("annotations", "scores", "copy_locks"):
        tx.run(f"DELETE FROM {table} WHERE copy_id = ANY(%s::uuid[])", ids)
    tx.run("UPDATE finalisations SET score = NULL WHERE copy_id = ANY(%s::uuid[])", ids)
    tx.run(
        "UPDATE copies SET deleted_at = coalesce(deleted_at, clock_timestamp()), final_score = NULL,"
        " grading_error_message = NULL, version = version + 1, updated_at = clock_timestamp()"
        " WHERE id = ANY(%s::uuid[])",
        ids,
    )


def drop_texts(tx: Tx, event_ids: Sequence[str]) -> None:
    """Destroy the texts that these events are committed to."""
    tx.run("DELETE FROM event_texts WHERE event_id = ANY(%s::uuid[])", (list(event_ids),))


def bury(tx: Tx, exam_id: str, archive_sha256: str) -> Exam:
    """Make an exam a tombstone."""
    tx.run(
        "UPDATE exams SET deleted_at = clock_timestamp(), archived_at = clock_timestamp(), archive_sha256 = %s,"
        " version = version + 1, updated_at = clock_timestamp() WHERE id = %s",
        (archive_sha256, exam_id),
    )
    return exams.even_deleted(tx, exam_id)
