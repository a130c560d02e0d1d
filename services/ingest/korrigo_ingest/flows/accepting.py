"""Uploaded bytes become a scan: stored, noted with its job and its event in one transaction, answered with 202.

Nothing is parsed here: a hostile file is opened in the sandbox of a worker only.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from korrigo_ingest import events, peers
from korrigo_ingest.settings import UploadSettings
from korrigo_kit import jobs
from korrigo_kit.errors import Exhausted, Invalid, Unsupported
from korrigo_kit.ids import new_id
from korrigo_kit.rest.idempotency import Idempotency
from korrigo_kit.rest.upload import Upload
from korrigo_kit.room import Runtime, add_blob_ref

log = logging.getLogger("grading.import")

JOB_KIND = "import"
# A PDF header may follow some bytes of junk, but not more (ISO 32000-1 annex H.3.4.1).
_HEADER_BYTES = 1024


def require_room(rt: Runtime, spool: Path) -> None:
    """Refuse an upload (507 DISK_FULL) while the disk still has room for everything else."""
    if shutil.disk_usage(spool).free < rt.settings.get(UploadSettings).min_free_bytes:
        raise Exhausted("DISK_FULL", "the server has no room for uploads now", status=507)


def require_pdf(upload: Upload) -> None:
    """Refuse what is no PDF at first sight: Invalid (EMPTY_FILE), Unsupported (415 INVALID_MIME_TYPE)."""
    if upload.size == 0:
        raise Invalid("EMPTY_FILE", "the file is empty")
    with upload.path.open("rb") as stream:
        if b"%PDF-" not in stream.read(_HEADER_BYTES):
            raise Unsupported("INVALID_MIME_TYPE", "the file is not a PDF")


def accept(rt: Runtime, upload: Upload, exam: peers.Exam, actor_id: str, idempotency: Idempotency) -> Mapping[str, Any]:
    """Store the bytes and commit scan, job, event and answer; returns {scan_id, job_id, copy_ids}.

    The same bytes again into the same exam are accepted with the anomaly DUPLICATE_FILE for a person.
    """
    blob = rt.blobs.put_file(upload.path)
    scan_id = new_id()
    with rt.db.transaction(actor=actor_id) as tx:
        job_id = jobs.enqueue(tx, kind=JOB_KIND, subject_id=scan_id, payload={"scan_id": scan_id})
        earlier = tx.one(
            "SELECT id::text AS id FROM scans WHERE exam_id = %s AND sha256 = %s AND state <> 'REJECTED'"
            " ORDER BY created_at LIMIT 1",
            (exam.exam_id, blob.sha256),
        )
        tx.run(
            "INSERT INTO scans (id, exam_id, filename, sha256, size, split_mode, pages_per_booklet, split_horizontal,"
            " uploaded_by, job_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                scan_id,
                exam.exam_id,
                upload.filename.replace("\x00", ""),
                blob.sha256,
                blob.size,
                exam.split_mode,
                exam.pages_per_booklet,
                exam.split_horizontal,
                actor_id,
                job_id,
            ),
        )
        if earlier is not None:
            tx.run(
                "INSERT INTO anomalies (id, scan_id, code, detail) VALUES (%s, %s, 'DUPLICATE_FILE',"
                " jsonb_build_object('scan_id', %s::text))",
                (new_id(), scan_id, earlier["id"]),
            )
        add_blob_ref(tx, blob.sha256, "scan", scan_id)
        events.scan_accepted(tx, scan_id, exam.exam_id, actor_id)
        answer = {"scan_id": scan_id, "job_id": job_id, "copy_ids": []}
        idempotency.store(tx, answer, 202)
    log.info("scan %s accepted for exam %s", scan_id, exam.exam_id, extra={"exam_id": exam.exam_id})
    return answer
