"""Events of a copy. Metadata keys are those of domain.md 1.3; texts only as commitments (decisions.md, Leaf v1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from korrigo_grading.models.copies import Copy
from korrigo_kit import outbox
from korrigo_kit.db import Tx
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_protos.grading.v1 import events_pb2


def status_changed(
    tx: Tx,
    copy: Copy,
    status: str,
    *,
    action: str | None = None,
    actor_id: str = SYSTEM_ACTOR,
    metadata: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    revision: int | None = None,
    assigned_corrector_id: str | None = None,
) -> None:
    """Tell a copy's new status, and with it the act that led there."""
    outbox.emit(
        tx,
        type="copy_status_changed",
        subject=("copy", copy.id),
        payload=events_pb2.CopyStatusChanged(
            copy_id=copy.id,
            exam_id=copy.exam_id,
            status=status,
            revision=revision or copy.revision,
            assigned_corrector_id=assigned_corrector_id or copy.assigned_corrector_id or "",
        ),
        actor_id=actor_id,
        action=action,
        metadata=metadata,
        texts=texts,
    )


def recorded(
    tx: Tx,
    copy_id: str,
    action: str,
    actor_id: str,
    metadata: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Tell an act that only the audit trail keeps."""
    outbox.emit(
        tx,
        type="recorded",
        subject=("copy", copy_id),
        payload=events_pb2.Recorded(),
        actor_id=actor_id,
        action=action,
        metadata=metadata,
        texts=texts,
    )


def unlocked(
    tx: Tx,
    copy: Copy,
    status: str,
    *,
    reason: str,
    previous_owner_id: str | None,
    held_seconds: int,
    actor_id: str = SYSTEM_ACTOR,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Tell that a lock ended: released, expired, forced, reconciled or takeover."""
    status_changed(
        tx,
        copy,
        status,
        action="UNLOCK",
        actor_id=actor_id,
        metadata={"reason": reason, "previous_owner_id": previous_owner_id, "held_seconds": held_seconds},
        texts=texts,
    )


def render_requested(tx: Tx, copy: Copy, request: int, manifest_sha256: str, actor_id: str) -> None:
    """Ask render for the final PDF of a copy's revision."""
    outbox.emit(
        tx,
        type="render_requested",
        subject=("copy", copy.id),
        payload=events_pb2.RenderRequested(
            copy_id=copy.id, revision=copy.revision, request=request, manifest_sha256=manifest_sha256
        ),
        actor_id=actor_id,
    )
