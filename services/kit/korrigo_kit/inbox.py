"""The inbox: every event takes effect once, in order, whatever the broker does.

Two ways to follow another room (`Subscription.is_sequenced`):

* sequenced: all its events of a stream, applied strictly by number; a hole stops the stream until the missing
  ones were fetched from the source.
* picked: only the named types; an event carries the state, not a step, so a later one makes an earlier one
  needless and only the last must not be missed.

`catch_up` asks a source which streams moved and fetches what the broker never brought, the last event included:
the broker is only the fast path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from korrigo_kit import context
from korrigo_kit.db import Database, Tx
from korrigo_kit.errors import KorrigoError
from korrigo_protos.common.v1 import event_pb2

log = logging.getLogger("korrigo.inbox")

Handler = Callable[[Tx, event_pb2.Event], None]

# Longer than any transaction may last (statement timeout 15 s, idle 30 s): a commit that took its clock early
# is still inside the window of the next look.
LOOK_BACK_MS = 120_000
_PAGE = 500


@dataclass(frozen=True)
class Subscription:
    """What a room follows of another: handlers by event type; types without a handler only advance the number."""

    source: str
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    is_sequenced: bool = True
    # Called for every event of a sequenced subscription that has no handler of its own (audit).
    default: Handler | None = None
    # Called before the transaction; may fetch what the event says came before it in another room.
    before: Callable[[event_pb2.Event], None] | None = None

    @property
    def routing_keys(self) -> tuple[str, ...]:
        """Binding keys on the topic exchange."""
        if self.is_sequenced:
            return (f"{self.source}.#",)
        return tuple(f"{self.source}.{type}" for type in sorted(self.handlers))

    @property
    def types(self) -> tuple[str, ...]:
        """Types to ask for; empty = all."""
        return () if self.is_sequenced else tuple(sorted(self.handlers))

    def handler(self, type: str) -> Handler | None:
        return self.handlers.get(type, self.default)


class Outcome(Enum):
    """What became of an offered event."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    GAP = "gap"


def apply(database: Database, subscription: Subscription, event: event_pb2.Event) -> Outcome:
    """Apply an event in one transaction with the note that it was applied."""
    kind = "" if subscription.is_sequenced else event.type
    key = (event.source, event.stream.subject_type, event.stream.subject_id, kind)
    with context.bind(request_id=event.request_id or None, traceparent=event.traceparent or None):
        if subscription.before is not None:
            subscription.before(event)
        with database.transaction() as tx:
            row = tx.row(
                "INSERT INTO inbox AS i (source, subject_type, subject_id, kind, last_seq)"
                " VALUES (%s, %s, %s, %s, 0) ON CONFLICT (source, subject_type, subject_id, kind)"
                " DO UPDATE SET last_seq = i.last_seq RETURNING last_seq",
                key,
            )
            last_seq = row["last_seq"]
            if event.source_seq <= last_seq:
                return Outcome.DUPLICATE
            if subscription.is_sequenced and event.source_seq > last_seq + 1:
                return Outcome.GAP
            handler = subscription.handler(event.type)
            if handler is not None:
                handler(tx, event)
            tx.run(
                "UPDATE inbox SET last_seq = %s, updated_at = clock_timestamp(), last_error = NULL"
                " WHERE source = %s AND subject_type = %s AND subject_id = %s AND kind = %s",
                (event.source_seq, *key),
            )
    log.debug("event %s %s applied", event.type, event.source_seq)
    return Outcome.APPLIED


class Peer:
    """What catching up needs of a source room; `kit.rpc` gives the real one."""

    def heads(self, source: str, since_ms: int, page: str, types: Iterable[str]) -> event_pb2.ListHeadsResponse:
        raise NotImplementedError

    def fetch(
        self, source: str, stream: event_pb2.Stream, from_seq: int, types: Iterable[str]
    ) -> list[event_pb2.Event]:
        raise NotImplementedError


def receive(database: Database, subscription: Subscription, event: event_pb2.Event, peer: Peer) -> Outcome:
    """Apply an event from the broker; a gap before it is fetched from the source first."""
    outcome = apply(database, subscription, event)
    if outcome is Outcome.GAP:
        fill(database, subscription, event.stream, "", peer)
        outcome = apply(database, subscription, event)
    return outcome


def fill(database: Database, subscription: Subscription, stream: event_pb2.Stream, kind: str, peer: Peer) -> int:
    """Fetch and apply what is missing of one stream; returns how many events were applied."""
    applied = 0
    while True:
        from_seq = _next(database, subscription, stream, kind)
        events = peer.fetch(subscription.source, stream, from_seq, (kind,) if kind else ())
        before = applied
        for event in events:
            applied += apply(database, subscription, event) is Outcome.APPLIED
        if applied == before:
            return applied


def _next(database: Database, subscription: Subscription, stream: event_pb2.Stream, kind: str) -> int:
    with database.transaction() as tx:
        row = tx.one(
            "SELECT last_seq FROM inbox WHERE source = %s AND subject_type = %s AND subject_id = %s AND kind = %s",
            (subscription.source, stream.subject_type, stream.subject_id, kind),
        )
    return (int(row["last_seq"]) if row else 0) + 1


def catch_up(
    database: Database, subscription: Subscription, peer: Peer, came_round: Callable[[], object] = lambda: None
) -> int:
    """Ask the source which streams moved since the last look and fetch what is missing; returns events applied.

    A stream whose event cannot be applied is noted in `inbox.last_error` and does not stop the others. `came_round` is
    called before each stream: after a long outage there are more of them than fit between two signs of life.
    """
    kind = ",".join(subscription.types)
    with database.transaction() as tx:
        row = tx.one(
            "SELECT looked_at_ms FROM inbox_looks WHERE source = %s AND kind = %s", (subscription.source, kind)
        )
    since = max(0, (row["looked_at_ms"] if row else 0) - LOOK_BACK_MS)
    page, applied, is_whole, first_now = "", 0, True, 0
    while True:
        answer = peer.heads(subscription.source, since, page, subscription.types)
        first_now = first_now or answer.now_ms
        for head in _behind(database, subscription, answer.heads):
            came_round()
            try:
                applied += fill(database, subscription, head.stream, head.type, peer)
            except KorrigoError as error:
                is_whole = False
                _note(database, subscription, head.stream, error)
        page = answer.next_page_token
        if not page:
            break
    if is_whole:
        with database.transaction() as tx:
            tx.run(
                "INSERT INTO inbox_looks (source, kind, looked_at_ms) VALUES (%s, %s, %s)"
                " ON CONFLICT (source, kind) DO UPDATE SET looked_at_ms = excluded.looked_at_ms",
                (subscription.source, kind, first_now),
            )
    return applied


def _behind(
    database: Database, subscription: Subscription, heads: Iterable[event_pb2.Head]
) -> list[event_pb2.Head]:
    offered = list(heads)
    if not offered:
        return []
    with database.transaction() as tx:
        rows = tx.all(
            "SELECT subject_type, subject_id, kind, last_seq FROM inbox WHERE source = %s AND subject_id = ANY(%s)",
            (subscription.source, [head.stream.subject_id for head in offered]),
        )
    known = {(row["subject_type"], row["subject_id"], row["kind"]): row["last_seq"] for row in rows}
    return [
        head
        for head in offered
        if known.get((head.stream.subject_type, head.stream.subject_id, head.type), 0) < head.last_seq
    ]


def _note(database: Database, subscription: Subscription, stream: event_pb2.Stream, error: KorrigoError) -> None:
    log.error("event of %s could not be applied: %s", subscription.source, error.reason)
    with database.transaction() as tx:
        tx.run(
            "UPDATE inbox SET last_error = %s, updated_at = clock_timestamp()"
            " WHERE source = %s AND subject_type = %s AND subject_id = %s",
            (error.reason, subscription.source, stream.subject_type, stream.subject_id),
        )


def forget_looks(tx: Tx, source: str, kinds: Iterable[str]) -> int:
    """Have the last event of every followed stream applied again at the next `catch_up`; returns how many streams.

    For picked kinds, whose last event says everything: nothing is deleted, so readers see no hole meanwhile.
    """
    tx.run("DELETE FROM inbox_looks WHERE source = %s", (source,))
    return tx.run(
        "UPDATE inbox SET last_seq = last_seq - 1 WHERE source = %s AND kind = ANY(%s) AND last_seq > 0",
        (source, list(kinds)),
    )
