"""Do the rows of grading agree with each other? Started by `korrigo check_data_integrity`; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from korrigo_grading.domain import scheme
from korrigo_grading.domain import scores as rules
from korrigo_grading.models import annotations as rows
from korrigo_grading.models import copies, scores
from korrigo_kit.room import Runtime

Finding = tuple[str, str, str]
# SQL answering subject and detail; each must answer no row in a sound database. Places may miss the page by 1e-6
# (domain.md 2, 34); a NaN is above every number for PostgreSQL, so it is found too.
_RULES = {
    "COPY_WITHOUT_EXAM": """
        SELECT c.id::text AS subject, c.exam_id::text AS detail FROM copies c
        LEFT JOIN exams e ON e.id = c.exam_id WHERE e.id IS NULL""",
    "COPY_WITHOUT_PAGES": """
        SELECT c.id::text AS subject, c.status AS detail FROM copies c
        WHERE c.deleted_at IS NULL AND c.status <> 'STAGING'
            AND NOT EXISTS (SELECT 1 FROM copy_pages p WHERE p.copy_id = c.id)""",
    "ANNOTATION_WITHOUT_COPY": """
        SELECT a.id::text AS subject, a.copy_id::text AS detail FROM annotations a
        LEFT JOIN copies c ON c.id = a.copy_id WHERE c.id IS NULL""",
    "ANNOTATION_ORPHANED": """
        SELECT a.copy_id::text AS subject, 'annotation ' || a.id AS detail FROM annotations a
        JOIN copies c ON c.id = a.copy_id LEFT JOIN copy_pages p ON p.copy_id = a.copy_id AND p.page_id = a.page_id
        WHERE a.deleted_at IS NULL AND c.deleted_at IS NULL AND p.page_id IS NULL""",
    "ANNOTATION_OUT_OF_PAGE": """
        SELECT a.copy_id::text AS subject, 'annotation ' || a.id AS detail FROM annotations a
        WHERE a.deleted_at IS NULL AND NOT (a.x >= -1e-6 AND a.y >= -1e-6 AND a.w > 0 AND a.h > 0
            AND a.x + a.w <= 1 + 1e-6 AND a.y + a.h <= 1 + 1e-6)""",
    "LOCKED_WITHOUT_LOCK": """
        SELECT c.id::text AS subject, 'LOCKED since ' || coalesce(c.locked_at, c.updated_at) AS detail FROM copies c
        WHERE c.status = 'LOCKED' AND NOT EXISTS (SELECT 1 FROM copy_locks l WHERE l.copy_id = c.id)""",
    "LOCK_WITHOUT_LOCKED": """
        SELECT c.id::text AS subject, c.status AS detail FROM copy_locks l JOIN copies c ON c.id = l.copy_id
        WHERE c.status <> 'LOCKED'""",
    "IN_PROGRESS_WITHOUT_REQUEST": """
        SELECT c.id::text AS subject, 'revision ' || c.revision AS detail FROM copies c
        WHERE c.status = 'GRADING_IN_PROGRESS' AND NOT EXISTS (SELECT 1 FROM finalisations f
            WHERE f.copy_id = c.id AND f.revision = c.revision AND f.state = 'REQUESTED')""",
    "GRADED_WITHOUT_FINAL": """
        SELECT c.id::text AS subject, 'revision ' || c.revision AS detail FROM copies c
        WHERE c.status = 'GRADED' AND NOT EXISTS (SELECT 1 FROM finalisations f
            WHERE f.copy_id = c.id AND f.revision = c.revision AND f.state = 'SUCCEEDED')""",
    "FINAL_NOT_REFERENCED": """
        SELECT f.copy_id::text AS subject, f.final_sha256 AS detail FROM finalisations f
        JOIN copies c ON c.id = f.copy_id JOIN exams e ON e.id = c.exam_id
        WHERE f.state = 'SUCCEEDED' AND e.archived_at IS NULL
            AND NOT EXISTS (SELECT 1 FROM blob_refs r WHERE r.sha256 = f.final_sha256)""",
}
_AT_ONCE = 200


def check(rt: Runtime) -> list[Finding]:
    """Return what is wrong as (code, subject, detail)."""
    found: list[Finding] = []
    with rt.db.transaction() as tx:
        for code, statement in _RULES.items():
            found += [(code, row["subject"], row["detail"]) for row in tx.all(statement)]
    return [*found, *_scores(rt)]


def _scores(rt: Runtime) -> Iterator[Finding]:
    """Compute the mark of every graded copy again, by the one computation."""
    last = "00000000-0000-0000-0000-000000000000"
    while True:
        with rt.db.transaction() as tx:
            ids = [
                found["id"]
                for found in tx.all(
                    "SELECT id::text AS id FROM copies WHERE status = 'GRADED' AND deleted_at IS NULL AND id > %s"
                    " ORDER BY id LIMIT %s",
                    (last, _AT_ONCE),
                )
            ]
            for copy_id in ids:
                copy = copies.read(tx, copy_id)
                if copy is None or copy.status != "GRADED":
                    continue
                written = scores.read(tx, copy_id)
                sheet = rules.sheet(copy.leaves, copy.max_score, written.scores, rows.deltas(tx, copy_id))
                if sheet.total != copy.final_score:
                    stored = "none" if copy.final_score is None else scheme.number(copy.final_score)
                    yield "SCORE_DIFFERS", copy_id, f"{stored} stored, {scheme.number(sheet.total)} computed"
        if len(ids) < _AT_ONCE:
            return
        last = ids[-1]


def statuses_of(rt: Runtime, after: str, limit: int = 500) -> list[tuple[str, str]]:
    """List (copy, status) of the copies that are not deleted, from after one on, so that audit can be asked.

    Copies that moved within the last ten seconds are left out: what was told of them may still be on its way.
    """
    with rt.db.transaction() as tx:
        rows = tx.all(
            "SELECT id::text AS id, status FROM copies WHERE deleted_at IS NULL"
            " AND updated_at < clock_timestamp() - interval '10 seconds'"
            " AND (%(after)s = '' OR id::text > %(after)s) ORDER BY id::text LIMIT %(limit)s",
            {"after": after, "limit": limit},
        )
    return [(row["id"], row["status"]) for row in rows]
