"""The order in which exams leave: export all, verify the export, then destroy exam by exam, room by room.

    is the archive there already? ──no──> write it (nothing is changed) ──> verify every byte
               └──yes──> verify it: an earlier run was cut short, go on with the exams that it holds
    per exam: grading (marks, texts, references; tombstones) ─> ingest ─> render ─> content that nobody names

Every step may be repeated and says itself whether it was done, and the archive names what is to be destroyed; so a
kill at any moment leaves either everything, or an archive from which the next run goes on.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from korrigo.exam_archive import file
from korrigo.exam_archive.file import Archive, Exam, Writer
from korrigo.operating import Operation, Progress
from korrigo_audit.flows import listing
from korrigo_grading.flows import archiving as grading_rows
from korrigo_grading.flows.archiving import Contents, Old
from korrigo_ingest.flows import archiving as ingest_rows
from korrigo_kit.clock import rfc3339
from korrigo_kit.errors import StateConflict
from korrigo_render.flows import archiving as render_rows


@dataclass(frozen=True, slots=True)
class Left:
    """An exam that has left, now or in an earlier run."""

    id: str
    name: str
    copies: int
    is_new: bool
    destroyed: int


def finished(at: Operation, first: date, last: date, *, skip_unfinished: bool) -> list[Old]:
    """List the exams of a time that may leave and have not; raises StateConflict (EXAM_NOT_FINISHED)."""
    found = [exam for exam in grading_rows.between(at["grading"], first, last) if not exam.is_archived]
    ready = []
    for exam in found:
        if _is_finished(at, exam):
            ready.append(exam)
        elif not skip_unfinished:
            raise StateConflict(
                "EXAM_NOT_FINISHED",
                f"exam {exam.id} is not finished ({exam.unfinished} of {exam.copies} copies are not graded): finish it,"
                " or say --skip-unfinished",
            )
    return ready


def _is_finished(at: Operation, exam: Old) -> bool:
    try:
        ingest_rows.scans_of(at["ingest"], exam.id)
    except StateConflict:
        return False
    return exam.unfinished == 0


def export(at: Operation, exams: Sequence[Old], path: Path, progress: Progress) -> Archive:
    """Write the archive and read it back; changes nothing in the product."""
    with file.writing(path) as writer:
        for exam in exams:
            _write_exam(at, exam, writer, progress)
        writer.manifest({"made_at": rfc3339(datetime.now(UTC)), "korrigo": version("korrigo")})
    return file.verified(path)


def _write_exam(at: Operation, exam: Old, writer: Writer, progress: Progress) -> None:
    found = grading_rows.contents(at["grading"], exam.id)
    scans = ingest_rows.scans_of(at["ingest"], exam.id)
    root = f"exams/{exam.id}"
    writer.text(f"{root}/exam.json", _json(found.exam))
    writer.text(f"{root}/copies.csv", _table(found))
    for copy in found.copies:
        writer.text(f"{root}/copies/{copy['id']}.json", _json(copy))
    with tempfile.TemporaryDirectory(prefix="korrigo-archive-") as folder:
        for number, final in enumerate(found.finals, 1):
            progress("final PDFs archived", number)
            path = at["grading"].blobs.fetch(final["sha256"], Path(folder) / "final.pdf")
            writer.file(f"{root}/finals/{final['copy_id']}-r{final['revision']}.pdf", path, final["sha256"])
            path.unlink()
    subjects = [("exam", exam.id), *(("copy", id_) for id_ in found.copy_ids), *(("scan", id_) for id_ in scans)]
    records = list(listing.whole(at["audit"].db, subjects=subjects))
    writer.text(f"{root}/events.jsonl", "".join(json.dumps(record, default=str) + "\n" for record in records))
    blobs = {
        *found.blobs,
        *ingest_rows.blobs_of(at["ingest"], exam.id),
        *render_rows.blobs_of(at["render"], found.copy_ids),
    }
    writer.exams[exam.id] = Exam(
        name=exam.name,
        date=exam.date.isoformat(),
        copies=len(found.copies),
        fingerprint=found.fingerprint,
        copy_ids=found.copy_ids,
        event_ids=[record["id"] for record in records],
        blobs=sorted(blobs),
    )


def destroy(at: Operation, archive: Archive, progress: Progress) -> list[Left]:
    """Destroy what is in a verified archive, exam by exam; what an earlier run did is not done again."""
    done = []
    for number, (exam_id, exam) in enumerate(archive.exams.items(), 1):
        progress("exams left", number)
        is_new = grading_rows.purge(
            at["grading"],
            exam_id,
            fingerprint=exam.fingerprint,
            archive_sha256=archive.sha256,
            event_ids=exam.event_ids,
            actor_id=at.actor_id,
        )
        ingest_rows.purge(at["ingest"], exam_id, event_ids=exam.event_ids, actor_id=at.actor_id)
        render_rows.purge(at["render"], exam.copy_ids, event_ids=exam.event_ids)
        destroyed = ingest_rows.destroy(at["ingest"], exam.blobs)
        done.append(Left(exam_id, exam.name, exam.copies, is_new, destroyed))
    return done


def _table(found: Contents) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["copy_id", "anonymous_id", "status", "revision", "final_score", "graded_at", "withdrawn"])
    for copy in found.copies:
        mark = "" if copy["final_hundredths"] is None else f"{copy['final_hundredths'] / 100:.2f}"
        graded_at = rfc3339(copy["graded_at"]) if copy["graded_at"] else ""
        row = [copy["id"], copy["anonymous_id"], copy["status"], copy["revision"], mark, graded_at, copy["is_deleted"]]
        writer.writerow(row)
    return text.getvalue()


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1, default=str)
