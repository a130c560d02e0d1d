"""Audit follows every room: all events, in order, each appended once.

An event that names what its source had seen of another room (`after`) waits until that is here too, so that the
numbers which the API gives are causal.
"""

from __future__ import annotations

from collections.abc import Sequence

from korrigo_audit.flows.append import append, causes
from korrigo_kit import auth, inbox
from korrigo_kit.db import Tx
from korrigo_kit.inbox import Subscription
from korrigo_kit.room import Runtime
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.grading.v1 import events_pb2


def subscriptions(rt: Runtime) -> Sequence[Subscription]:
    """Follow ingest, grading and render."""
    ingest = Subscription(source="ingest", default=append)

    def before(event: event_pb2.Event) -> None:
        for source, number in causes(event).items():
            if source == "ingest" and _last(rt, event.stream, source) < number:
                inbox.fill(rt.db, ingest, event.stream, "", rt.channels)

    return (
        ingest,
        Subscription(
            source="grading", handlers={"sessions_revoked": _on_sessions_revoked}, default=append, before=before
        ),
        Subscription(source="render", default=append),
    )


def _last(rt: Runtime, stream: event_pb2.Stream, source: str) -> int:
    with rt.db.transaction() as tx:
        row = tx.one(
            "SELECT last_seq FROM inbox WHERE source = %s AND subject_type = %s AND subject_id = %s AND kind = ''",
            (source, stream.subject_type, stream.subject_id),
        )
    return int(row["last_seq"]) if row else 0


def _on_sessions_revoked(tx: Tx, event: event_pb2.Event) -> None:
    for session in events_pb2.SessionsRevoked.FromString(event.payload).sessions:
        auth.revoke(tx, session.session_id, session.expires_at)
    append(tx, event)
