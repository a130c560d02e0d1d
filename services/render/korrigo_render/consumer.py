"""Render follows grading: requests to render, and revoked sessions."""

from __future__ import annotations

from collections.abc import Sequence

from korrigo_kit import auth
from korrigo_kit.db import Tx
from korrigo_kit.inbox import Subscription
from korrigo_kit.room import Runtime
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.grading.v1 import events_pb2
from korrigo_render.flows import rendering


def subscriptions(rt: Runtime) -> Sequence[Subscription]:
    """Pick what concerns render; both types carry state, so only the last of each matters."""
    return (
        Subscription(
            source="grading",
            handlers={"render_requested": _on_render_requested, "sessions_revoked": _on_sessions_revoked},
            is_sequenced=False,
        ),
    )


def _on_render_requested(tx: Tx, event: event_pb2.Event) -> None:
    rendering.request(tx, events_pb2.RenderRequested.FromString(event.payload))


def _on_sessions_revoked(tx: Tx, event: event_pb2.Event) -> None:
    for session in events_pb2.SessionsRevoked.FromString(event.payload).sessions:
        auth.revoke(tx, session.session_id, session.expires_at)
