"""What grading tells of accounts and their sessions."""

from __future__ import annotations

from typing import Any

from korrigo_grading.models import accounts
from korrigo_kit import outbox
from korrigo_kit.db import Tx
from korrigo_kit.outbox import Emitted
from korrigo_protos.grading.v1 import events_pb2


def user_changed(tx: Tx, user_id: str, *, action: str, actor_id: str, metadata: dict[str, Any]) -> Emitted:
    """Note in the audit trail that an account was created or changed; never a name, never a password."""
    return outbox.emit(
        tx,
        type="user_changed",
        subject=("user", user_id),
        payload=events_pb2.Recorded(),
        actor_id=actor_id,
        action=action,
        metadata=metadata,
    )


def sessions_revoked(tx: Tx, user_id: str, *, actor_id: str) -> None:
    """Refuse the revoked sessions of an account here, and tell every room to."""
    refused = accounts.refused_sessions(tx, user_id)
    if not refused:
        return
    accounts.refuse(tx, refused)
    sessions = [events_pb2.RevokedSession(session_id=id, expires_at=ends) for id, ends in refused]
    outbox.emit(
        tx,
        type="sessions_revoked",
        subject=("user", user_id),
        payload=events_pb2.SessionsRevoked(user_id=user_id, sessions=sessions),
        actor_id=actor_id,
    )
