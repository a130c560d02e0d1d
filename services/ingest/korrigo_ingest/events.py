"""The events that ingest writes, with the metadata that the audit trail keeps of them (domain.md 1.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from korrigo_kit import outbox
from korrigo_kit.db import Tx
from korrigo_protos.grading.v1.events_pb2 import Recorded
from korrigo_protos.ingest.v1.events_pb2 import (
    Anomaly,
    Booklet,
    CopyAssembled,
    CopyStaged,
    Page,
    ScanAccepted,
    ScanFinished,
)


def redacted_name(sha256: str) -> str:
    """Name an upload without the client's name for it, which may be a person's."""
    return f"upload-{sha256[:8]}.pdf"


def scan_accepted(tx: Tx, scan_id: str, exam_id: str, actor_id: str) -> None:
    """Tell that bytes were accepted."""
    outbox.emit(
        tx,
        type="scan_accepted",
        subject=("scan", scan_id),
        payload=ScanAccepted(scan_id=scan_id, exam_id=exam_id),
        actor_id=actor_id,
    )


def copy_staged(tx: Tx, scan: Mapping[str, Any], copy_id: str, anonymous_id: str) -> None:
    """Tell that a copy exists."""
    outbox.emit(
        tx,
        type="copy_staged",
        subject=("copy", copy_id),
        payload=CopyStaged(
            copy_id=copy_id,
            exam_id=scan["exam_id"],
            scan_id=scan["id"],
            anonymous_id=anonymous_id,
            created_by=scan["uploaded_by"],
        ),
        actor_id=scan["uploaded_by"],
    )


def copy_assembled(
    tx: Tx,
    scan: Mapping[str, Any],
    *,
    copy_id: str,
    assembly: int,
    pages: Sequence[Page],
    anomalies: Sequence[Anomaly],
    booklets: Sequence[Booklet],
    source: tuple[str, int],
) -> None:
    """Tell the pages of a copy: the IMPORT of the audit trail."""
    outbox.emit(
        tx,
        type="copy_assembled",
        subject=("copy", copy_id),
        payload=CopyAssembled(
            copy_id=copy_id,
            exam_id=scan["exam_id"],
            assembly=assembly,
            pages=pages,
            anomalies=anomalies,
            booklets=booklets,
            source_sha256=source[0],
            source_size=source[1],
        ),
        actor_id=scan["uploaded_by"],
        action="IMPORT",
        metadata={
            "filename": redacted_name(scan["sha256"]),
            "pages": len(pages),
            "split_mode": scan["split_mode"],
            "source_sha256": scan["sha256"],
            "copy_sha256": source[0],
            "assembly": assembly,
            "job_id": scan["job_id"],
            "success": True,
        },
    )


def copy_import_failed(tx: Tx, scan: Mapping[str, Any], copy_id: str, reason: str) -> None:
    """Tell that a staged copy got no pages."""
    outbox.emit(
        tx,
        type="copy_import_failed",
        subject=("copy", copy_id),
        payload=ScanFinished(scan_id=scan["id"], exam_id=scan["exam_id"], state="FAILED", reason=reason),
        actor_id=scan["uploaded_by"],
        action="IMPORT",
        metadata={
            "filename": redacted_name(scan["sha256"]),
            "source_sha256": scan["sha256"],
            "job_id": scan["job_id"],
            "success": False,
            "error_type": reason,
        },
    )


def scan_finished(tx: Tx, scan: Mapping[str, Any], state: str, reason: str, copy_ids: Sequence[str]) -> None:
    """Tell how an import ended."""
    outbox.emit(
        tx,
        type="scan_finished",
        subject=("scan", scan["id"]),
        payload=ScanFinished(
            scan_id=scan["id"], exam_id=scan["exam_id"], state=state, reason=reason, copy_ids=copy_ids
        ),
        actor_id=scan["uploaded_by"],
    )


def scan_retried(tx: Tx, scan: Mapping[str, Any], actor_id: str) -> None:
    """Tell that an import that had failed is tried again."""
    outbox.emit(
        tx,
        type="scan_retried",
        subject=("scan", scan["id"]),
        payload=ScanAccepted(scan_id=scan["id"], exam_id=scan["exam_id"]),
        actor_id=actor_id,
        action="RETRY",
        metadata={"kind": "import", "job_id": scan["job_id"], "error_type": scan["error_reason"]},
    )


def acted(tx: Tx, action: str, actor_id: str, metadata: Mapping[str, Any]) -> None:
    """Note in the audit trail what an operator had done to the installation as a whole."""
    outbox.emit(
        tx,
        type="recorded",
        subject=("system", "system"),
        payload=Recorded(),
        actor_id=actor_id,
        action=action,
        metadata=metadata,
    )
