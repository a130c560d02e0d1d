"""Old exams leave: what must be kept is read for an archive, then marks, texts and references to content are destroyed.

Started by `korrigo archive_old_exams`, which writes and verifies the archive in between. Rows of exams and copies stay,
as tombstones, and so does every event; of the final PDFs the hashes stay.

    contents (one moment) ──archive written, verified──> purge: is it still as it was read? ──> gone, and told
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from korrigo_grading.events import copies as copy_events
from korrigo_grading.events.exams import exam_changed
from korrigo_grading.models import archives, exams
from korrigo_kit.db import Tx
from korrigo_kit.errors import NotFound, StateConflict
from korrigo_kit.room import Runtime


@dataclass(frozen=True, slots=True)
class Old:
    """An exam of a time; `unfinished` copies are not GRADED."""

    id: str
    name: str
    date: date
    copies: int
    unfinished: int
    is_archived: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """All that an archive keeps of an exam, at one moment; `fingerprint` tells whether that moment is over."""

    exam: dict[str, Any]
    copies: list[dict[str, Any]]
    finals: list[dict[str, Any]]
    blobs: list[str]
    fingerprint: str

    @property
    def copy_ids(self) -> list[str]:
        """Every copy that the exam ever had."""
        return [copy["id"] for copy in self.copies]


def between(rt: Runtime, first: date, last: date) -> list[Old]:
    """List the exams of these days, archived ones included; not those that were deleted for another reason."""
    with rt.db.transaction() as tx:
        return [Old(**row) for row in archives.between(tx, first, last)]


def contents(rt: Runtime, exam_id: str) -> Contents:
    """Read an exam as a whole; raises NotFound (EXAM_NOT_FOUND) and StateConflict (EXAM_NOT_FINISHED)."""
    with rt.db.transaction() as tx:
        exam = archives.exam(tx, exam_id)
        if exam is None:
            raise exams.missing()
        copies = archives.copies(tx, exam_id)
        _require_finished(copies)
        ids = [copy["id"] for copy in copies]
        marks = archives.marks(tx, ids)
        for copy in copies:
            copy |= {name: found.get(copy["id"], []) for name, found in marks.items()}
        return Contents(exam, copies, archives.finals(tx, ids), archives.blobs(tx, ids), _fingerprint(copies))


def purge(
    rt: Runtime,
    exam_id: str,
    *,
    fingerprint: str,
    archive_sha256: str,
    event_ids: Sequence[str],
    actor_id: str,
) -> bool:
    """Destroy marks, texts and references of an exam that is in a verified archive; False when that was done.

    `event_ids` are those of its events, whose texts go too. Raises NotFound, StateConflict (EXAM_NOT_FINISHED,
    EXAM_CHANGED).
    """
    with rt.db.transaction(actor=actor_id) as tx:
        exam = archives.hold(tx, exam_id)
        if exam is None:
            raise NotFound("EXAM_NOT_FOUND", "there is no such exam")
        if exam["is_archived"]:
            return False
        copies = archives.copies(tx, exam_id, is_held=True)
        _require_finished(copies)
        if _fingerprint(copies) != fingerprint:
            raise StateConflict("EXAM_CHANGED", "the exam has changed since it was exported: export it again")
        _destroy(tx, [copy["id"] for copy in copies], event_ids)
        facts = {"archive_sha256": archive_sha256, "copies": len(copies)}
        for copy in copies:
            copy_events.recorded(tx, copy["id"], "ARCHIVE", actor_id, {"archive_sha256": archive_sha256})
        exam_changed(
            tx,
            archives.bury(tx, exam_id, archive_sha256),
            action="ARCHIVE",
            actor_id=actor_id,
            metadata=facts,
            is_deleted=True,
        )
    return True


def _destroy(tx: Tx, copy_ids: list[str], event_ids: Sequence[str]) -> None:
    archives.drop_references(tx, copy_ids)
    archives.drop_marks(tx, copy_ids)
    archives.drop_texts(tx, event_ids)


def _require_finished(copies: Sequence[dict[str, Any]]) -> None:
    open_ones = [copy for copy in copies if not copy["is_deleted"] and copy["status"] != "GRADED"]
    if open_ones:
        raise StateConflict("EXAM_NOT_FINISHED", f"{len(open_ones)} of its copies are not graded")


def _fingerprint(copies: Sequence[dict[str, Any]]) -> str:
    # Nothing of a graded copy changes without its version.
    facts = sorted((copy["id"], copy["status"], copy["revision"], copy["version"]) for copy in copies)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
