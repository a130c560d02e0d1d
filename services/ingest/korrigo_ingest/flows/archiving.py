"""What ingest has of old exams goes: pictures, uploads, and the names that clients gave to their files.

Started by `korrigo archive_old_exams` after grading has let an exam go. Rows of scans, pages and copies stay without
content. Content that no room names any more is destroyed here, because ingest keeps the store tidy (flows.orphans).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from korrigo_ingest.peers import referenced
from korrigo_kit import outbox
from korrigo_kit.errors import StateConflict
from korrigo_kit.room import Runtime
from korrigo_protos.grading.v1.events_pb2 import Recorded

log = logging.getLogger("korrigo.archive")

_AT_ONCE = 500
_REFERENCES = (
    "(owner_kind = 'scan' AND owner_id IN (SELECT id::text FROM scans WHERE exam_id = %(exam)s))"
    " OR (owner_kind = 'copy' AND owner_id IN (SELECT c.copy_id::text FROM scan_copies c"
    "   JOIN scans s ON s.id = c.scan_id WHERE s.exam_id = %(exam)s))"
    " OR (owner_kind = 'page' AND owner_id IN (SELECT p.page_id::text FROM pages p"
    "   JOIN scans s ON s.id = p.scan_id WHERE s.exam_id = %(exam)s))"
)


def scans_of(rt: Runtime, exam_id: str) -> list[str]:
    """List the scans of an exam; raises StateConflict (EXAM_NOT_FINISHED) while one is being imported."""
    with rt.db.transaction() as tx:
        rows = tx.all("SELECT id::text AS id, state FROM scans WHERE exam_id = %s ORDER BY id", (exam_id,))
    if any(row["state"] in ("RECEIVED", "RUNNING") for row in rows):
        raise StateConflict("EXAM_NOT_FINISHED", "a scan of it is being imported")
    return [row["id"] for row in rows]


def blobs_of(rt: Runtime, exam_id: str) -> list[str]:
    """List the content that ingest refers to on behalf of an exam."""
    with rt.db.transaction() as tx:
        rows = tx.all(f"SELECT DISTINCT sha256 FROM blob_refs WHERE {_REFERENCES} ORDER BY sha256", {"exam": exam_id})
    return [row["sha256"] for row in rows]


def purge(rt: Runtime, exam_id: str, *, event_ids: Sequence[str], actor_id: str) -> bool:
    """Let go of an exam's content, names and texts; False when that was done."""
    with rt.db.transaction(actor=actor_id) as tx:
        dropped = tx.run(f"DELETE FROM blob_refs WHERE {_REFERENCES}", {"exam": exam_id})
        named = tx.run(
            "UPDATE scans SET filename = '', error_message = CASE WHEN error_message IS NULL THEN NULL ELSE '' END,"
            " updated_at = clock_timestamp() WHERE exam_id = %s AND filename <> ''",
            (exam_id,),
        )
        tx.run("DELETE FROM event_texts WHERE event_id = ANY(%s::uuid[])", (list(event_ids),))
        tx.run(
            "UPDATE pages SET picture_sha256 = NULL, masked_picture_sha256 = NULL"
            " WHERE scan_id IN (SELECT id FROM scans WHERE exam_id = %s)",
            (exam_id,),
        )
        if not dropped and not named:
            return False
        outbox.emit(
            tx,
            type="recorded",
            subject=("exam", exam_id),
            payload=Recorded(),
            actor_id=actor_id,
            action="ARCHIVE",
            metadata={"scans": named, "references": dropped},
        )
    return True


def destroy(rt: Runtime, names: Sequence[str]) -> int:
    """Destroy of this content what no room names any more; returns how much. Raises Unavailable when a room is silent.

    Whoever stores the same bytes at this moment loses nothing: what was named meanwhile comes back, and what he stored
    after it was taken away is another file.
    """
    destroyed = 0
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        named = referenced(rt, part)
        gone = [sha256 for sha256 in part if sha256 not in named]
        for sha256 in gone:
            rt.blobs.discard(sha256)
        named = referenced(rt, gone)
        for sha256 in gone:
            if sha256 in named:
                rt.blobs.recover(sha256)
                log.warning("content was named while it was destroyed and came back")
            else:
                rt.blobs.destroy(sha256)
                destroyed += 1
    return destroyed
