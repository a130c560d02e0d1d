"""Final PDFs that are not made: which copy, which page or annotation, and why (playbooks, scenario 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from korrigo.doctor.causes import LIKELY, POSSIBLE, SEEN, Blind, Cause, Found, Remedy, some, span
from korrigo.doctor.patient import Patient, Row, within
from korrigo_kit.errors import KorrigoError

_PAGES = ("BLOB_NOT_FOUND", "BLOB_CORRUPTED", "MISSING_PAGE", "UNEXPECTED_PAGE", "SOURCE_CHANGED")
_PLACES = ("ANNOTATION_OUT_OF_PAGE", "ANNOTATION_ORPHANED")
_MEMORY = ("RESOURCE_LIMIT", "WORKER_LOST", "SANDBOX_LOST")
# Named by other causes.
_ELSEWHERE = ("DISK_FULL", "OBJECT_STORE_UNAVAILABLE")
_BLOBS_LOOKED_AT = 40
_STORE_SECONDS = 5

# What is not made yet, with the newest word about it: grading's, or of the job that render has.
_UNDONE = """
SELECT c.id::text AS copy, c.status, c.grading_retries AS retries, c.source_sha256 AS source,
       coalesce(f.error_reason, '') AS reason, coalesce(c.grading_error_message, '') AS message,
       extract(epoch FROM clock_timestamp() - c.updated_at)::float8 AS age
FROM copies c LEFT JOIN LATERAL (SELECT error_reason FROM finalisations f WHERE f.copy_id = c.id
    AND f.revision = c.revision ORDER BY f.request DESC LIMIT 1) f ON true
WHERE c.status IN ('GRADING_IN_PROGRESS', 'GRADING_FAILED') AND c.deleted_at IS NULL
ORDER BY c.updated_at DESC LIMIT 200
"""
_RENDERING = """
SELECT subject_id AS copy, coalesce(error_reason, '') AS reason, coalesce(error_message, '') AS message, attempts,
       lost_leases FROM jobs WHERE state IN ('READY', 'RUNNING', 'QUARANTINED') AND (error_reason IS NOT NULL
       OR lost_leases > 0) ORDER BY created_at DESC LIMIT 200
"""


def _undone(patient: Patient) -> list[Row]:
    """List the copies that fail, each with what render says of it when grading was not told yet."""
    told = {row["copy"]: row for row in patient.rows(_RENDERING, room="render")}
    rows = patient.rows(_UNDONE, room="grading")
    for row in rows:
        newest = told.get(row["copy"])
        if newest is not None and (row["status"] == "GRADING_IN_PROGRESS" or not row["reason"]):
            row |= {"reason": newest["reason"] or row["reason"], "message": newest["message"] or row["message"]}
        row["lost"] = newest["lost_leases"] if newest else 0
    return rows


def _of(rows: Sequence[Row], what: str, certainty: float) -> Found | None:
    if not rows:
        return None
    evidence = [f"{len(rows)} copies {what}, the last {span(rows[0]['age'])} ago"]
    evidence += [
        f"copy {row['copy']}: {row['status']} after {row['retries']} attempts, {row['reason']} {row['message']}".strip()
        for row in rows[:3]
    ]
    return Found(certainty, tuple(evidence), {"copy": rows[0]["copy"]})


def _render_error(patient: Patient) -> Found | None:
    known = (*_PAGES, *_PLACES, *_MEMORY, *_ELSEWHERE, "")
    return _of([row for row in _undone(patient) if row["reason"] not in known], "could not be rendered", LIKELY + 0.1)


def _missing_page(patient: Patient) -> Found | None:
    rows = _undone(patient)
    told = [row for row in rows if row["reason"] in _PAGES]
    found = _of(told, "lack a page or the file that holds it", SEEN)
    absent = _absent(patient, [row["source"] for row in rows if row["source"]])
    if not absent:
        return found
    copies = [row["copy"] for row in rows if row["source"] in absent]
    evidence = (f"the store lacks {some(absent)}, the source of copies {some(copies)}",)
    return Found(SEEN + 0.05, (*(found.evidence if found else ()), *evidence), {"copy": copies[0]})


def _absent(patient: Patient, names: Sequence[str]) -> list[str]:
    """Ask the store which of these it lacks; a store that is away is another cause."""
    if not names:
        return []
    looked = list(dict.fromkeys(names))[:_BLOBS_LOOKED_AT]
    address = urlsplit(patient.settings.blobs.url)
    if address.scheme == "file":
        # Not through the store, which would make its folders where they are missing.
        cas = Path(unquote(address.path)) / "cas"
        return [name for name in looked if cas.is_dir() and not (cas / name[:2] / name).exists()]
    try:
        blobs = patient.room("grading").blobs
        return within(_STORE_SECONDS, "the store", lambda: [name for name in looked if blobs.size(name) is None])
    except (Blind, KorrigoError):
        return []


_OUTSIDE = """
SELECT a.copy_id::text AS copy, a.id::text AS id, a.x, a.y, a.w, a.h, p.page_id IS NULL AS is_orphaned, c.status
FROM annotations a JOIN copies c ON c.id = a.copy_id
LEFT JOIN copy_pages p ON p.copy_id = a.copy_id AND p.page_id = a.page_id
WHERE a.deleted_at IS NULL AND c.deleted_at IS NULL AND c.status <> 'GRADED' AND (p.page_id IS NULL
    OR NOT (a.x >= -1e-6 AND a.y >= -1e-6 AND a.w > 0 AND a.h > 0 AND a.x + a.w <= 1 + 1e-6 AND a.y + a.h <= 1 + 1e-6))
ORDER BY a.updated_at DESC LIMIT 50
"""


def _annotation_out_of_page(patient: Patient) -> Found | None:
    found = _of([row for row in _undone(patient) if row["reason"] in _PLACES], "have a misplaced annotation", SEEN)
    rows = patient.rows(_OUTSIDE, room="grading")
    if not rows:
        return found
    places = tuple(
        f"annotation {row['id']} of copy {row['copy']} ({row['status']}): "
        + ("its page is not in the copy" if row["is_orphaned"] else "x {x:g} y {y:g} w {w:g} h {h:g}".format(**row))
        for row in rows[:3]
    )
    evidence = (*(found.evidence if found else ()), f"{len(rows)} annotations lie outside their page", *places)
    return Found(SEEN + 0.05, evidence, {"copy": rows[0]["copy"]})


def _out_of_memory(patient: Patient) -> Found | None:
    rows = [row for row in _undone(patient) if row["reason"] in _MEMORY or row["lost"] > 0]
    found = _of(rows, "broke a limit, or their worker was killed", SEEN if rows and rows[0]["reason"] else LIKELY)
    lost = patient.rows(
        "SELECT subject_id, lost_leases FROM jobs WHERE state IN ('READY', 'RUNNING') AND lost_leases > 0"
        " OR state = 'QUARANTINED' AND error_reason = 'WORKER_LOST'",
        room="ingest",
    )
    if not lost:
        return found
    evidence = (f"{len(lost)} imports lost their worker, up to {max(row['lost_leases'] for row in lost)} times each",)
    return Found(
        max(found.certainty if found else 0, LIKELY),
        (*(found.evidence if found else ()), *evidence),
        {"copy": "COPY_ID", **(found.values if found else {})},
    )


def _retries_exhausted(patient: Patient) -> Found | None:
    rows = [row for row in _undone(patient) if row["status"] == "GRADING_FAILED"]
    return _of(rows, "failed for good and wait for a person", POSSIBLE + 0.1)


_RETRY = Remedy(
    "korrigo intervene RetryFinalize copy/{copy} --reason 'cause removed'",
    "Ask for the final PDF again once the cause is gone; asking twice makes one PDF.",
    "korrigo intervene RetryFinalize copy/{copy} --reason 'cause removed' --dry-run",
)
_RENDER = Remedy(
    "korrigo render {copy} --out /tmp/{copy}.pdf", "Make the PDF outside any job and read what the engine says."
)

CAUSES = (
    Cause(
        "annotation-out-of-page",
        "An annotation lies outside its page",
        ("finalization-failing",),
        _annotation_out_of_page,
        (
            Remedy("korrigo check_data_integrity", "List every annotation that was written behind the product's back."),
            Remedy("korrigo logs grep {copy}",
                   "An admin reopens the copy (POST /api/copies/ID/reopen); its marker moves the annotation."),
            _RETRY,
        ),
        "finalization-failing",
    ),
    Cause(
        "missing-page",
        "A file that the copy is made of is missing or changed",
        ("finalization-failing", "storage"),
        _missing_page,
        (
            Remedy("korrigo check_data_integrity", "List every file that is missing or does not hash to its name."),
            Remedy("korrigo backup list", "Find the last backup that holds it; bring back that file, see the page."),
            _RETRY,
        ),
        "object-store",
    ),
    Cause(
        "out-of-memory",
        "The work needs more memory than it may have, or its worker is killed",
        ("finalization-failing", "import-stuck"),
        _out_of_memory,
        (
            Remedy("korrigo doctor scenario high-latency", "See who takes the memory of the machine."),
            Remedy("korrigo config show", "See KORRIGO_RENDER__MEMORY_BYTES and KORRIGO_IMPORT__MEMORY_BYTES."),
            _RETRY,
        ),
        "high-latency",
    ),
    Cause(
        "render-error",
        "The engine refuses the copy",
        ("finalization-failing",),
        _render_error,
        (_RENDER, _RETRY),
        "finalization-failing",
    ),
    Cause(
        "retries-exhausted",
        "Copies failed three times and nobody has asked again",
        ("finalization-failing",),
        _retries_exhausted,
        (
            Remedy("korrigo retry_failed_tasks --kind finalize",
                   "Ask again for all that failed, once the cause is gone.",
                   "korrigo retry_failed_tasks --kind finalize --dry-run"),
        ),
        "retries-exhausted",
    ),
)  # fmt: skip

