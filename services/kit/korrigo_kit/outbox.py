"""The outbox: what happened, written in the transaction of the change, told to the other rooms afterwards.

A stream is (subject_type, subject_id). Every room numbers its own events in a stream from 1 without gaps: the
number is taken under the row lock of the stream, so a rolled-back change gives its number back (decisions.md,
Streams). The leaf (version 1) is computed here, and its bytes are kept: they are what audit stores and proves.
Rows stay for 7 days after they were sent, so that a room that missed one can have it again.

Text typed by a person never enters an event: `texts` puts an HMAC with a random salt into the metadata and the
text itself into `event_texts`, which can be erased.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rfc8785
from google.protobuf.message import Message

from korrigo_kit import context
from korrigo_kit.clock import rfc3339
from korrigo_kit.db import Database, Tx
from korrigo_kit.ids import new_id
from korrigo_kit.telemetry.logs import AUDIT
from korrigo_protos.common.v1 import event_pb2

log = logging.getLogger(AUDIT)

# Actor of everything that no person did; a real account of this id exists (domain.md 1.3: never null).
SYSTEM_ACTOR = "00000000-0000-7000-8000-000000000001"
# Actor of acts of healing that no person asked for: the operator of a cluster, the sweeper of one machine.
OPERATOR_ACTOR = "00000000-0000-7000-8000-000000000002"

SUBJECT_TYPES = ("copy", "exam", "scan", "student", "user", "system")
KEEP_SENT_DAYS = 7
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Emitted:
    """An event as written: its id, its number in the stream, and the hexadecimal hash of its leaf."""

    id: str
    source_seq: int
    leaf_hash: str


def leaf_hash(leaf: bytes) -> bytes:
    """Hash a leaf as RFC 9162 section 2.1.1 does: SHA-256 over 0x00 and the bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def emit(
    tx: Tx,
    *,
    type: str,
    subject: tuple[str, str],
    payload: Message,
    actor_id: str = SYSTEM_ACTOR,
    action: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Emitted:
    """Write an event into the outbox of the room that owns the transaction.

    `action` names it in the audit trail; None = a technical event that only counts there. `metadata` must be
    JSON without floats beyond what RFC 8785 writes exactly. Raises Bug for an unknown subject type.
    """
    subject_type, subject_id = subject
    assert subject_type in SUBJECT_TYPES, subject_type
    head = tx.row(
        "INSERT INTO streams AS s (subject_type, subject_id, last_seq, updated_at)"
        " VALUES (%s, %s, 1, clock_timestamp())"
        " ON CONFLICT (subject_type, subject_id)"
        " DO UPDATE SET last_seq = s.last_seq + 1, updated_at = clock_timestamp()"
        " RETURNING last_seq, updated_at",
        (subject_type, subject_id),
    )
    event_id = new_id()
    facts = dict(metadata or {})
    for key, text in (texts or {}).items():
        facts[f"{key}_commitment"] = _commit_text(tx, event_id, key, text)
    leaf = rfc8785.dumps(
        {
            "v": 1,
            "id": event_id,
            "stream": {"subject_type": subject_type, "subject_id": subject_id},
            "source": tx.room,
            "source_seq": head["last_seq"],
            "action": action,
            "actor_id": actor_id,
            "at": rfc3339(head["updated_at"]),
            "metadata": facts,
            "request_id": context.request_id(),
        }
    )
    digest = leaf_hash(leaf)
    tx.run(
        "INSERT INTO outbox (id, subject_type, subject_id, source_seq, type, action, leaf, leaf_hash, payload,"
        " request_id, traceparent) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            event_id,
            subject_type,
            subject_id,
            head["last_seq"],
            type,
            action,
            leaf,
            digest,
            payload.SerializeToString(deterministic=True),
            context.request_id(),
            context.get("traceparent") or "",
        ),
    )
    # The playbooks look here for what wrote an event (domain.md 1.18).
    log.debug("audit.event.created", extra={"action": action, "event_id": event_id, f"{subject_type}_id": subject_id})
    return Emitted(event_id, head["last_seq"], digest.hex())


def _commit_text(tx: Tx, event_id: str, key: str, text: str) -> str:
    salt = secrets.token_bytes(32)
    tx.run("INSERT INTO event_texts (event_id, key, salt, text) VALUES (%s, %s, %s, %s)", (event_id, key, salt, text))
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()


_COLUMNS = (
    "id::text AS id, subject_type, subject_id, source_seq, type, leaf, payload, request_id, traceparent, sent_at"
)


def _event(row: Mapping[str, Any], room: str) -> event_pb2.Event:
    return event_pb2.Event(
        id=row["id"],
        type=row["type"],
        stream=event_pb2.Stream(subject_type=row["subject_type"], subject_id=row["subject_id"]),
        source=room,
        source_seq=row["source_seq"],
        leaf=bytes(row["leaf"]),
        payload=bytes(row["payload"]),
        traceparent=row["traceparent"],
        request_id=row["request_id"],
    )


def read(tx: Tx, event_id: str) -> event_pb2.Event:
    """Read an event that this very transaction, or one before it, wrote."""
    return _event(tx.row(f"SELECT {_COLUMNS} FROM outbox WHERE id = %s", (event_id,)), tx.room)


def lock_unsent(tx: Tx, limit: int = _BATCH) -> list[event_pb2.Event]:
    """Take unsent events, oldest first, under locks that other relays skip; `mark_sent` ends it."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM outbox WHERE sent_at IS NULL ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED", (limit,)
    )
    return [_event(row, tx.room) for row in rows]


def mark_sent(tx: Tx, ids: Sequence[str]) -> None:
    """Note that the broker confirmed these events."""
    if ids:
        tx.run("UPDATE outbox SET sent_at = clock_timestamp() WHERE id = ANY(%s::uuid[])", (list(ids),))


def prune(tx: Tx, days: int = KEEP_SENT_DAYS) -> int:
    """Delete events that were sent long ago; streams keep their last number."""
    return tx.run(
        "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE sent_at < clock_timestamp()"
        " - make_interval(days => %s) LIMIT 1000)",
        (days,),
    )


@dataclass(frozen=True, slots=True)
class Heads:
    """One page of stream heads, the token of the next page and the source's clock in ms."""

    heads: list[event_pb2.Head]
    next_token: str
    now_ms: int


def heads(database: Database, *, since_ms: int, after: str, types: Sequence[str], limit: int) -> Heads:
    """List the last number of every stream that changed since a moment; with `types`, one head per type."""
    kind = "type" if types else "''"
    key = f"subject_type || ':' || subject_id || ':' || {kind}"
    with database.transaction() as tx:
        rows = tx.all(
            f"SELECT subject_type, subject_id, {kind} AS kind, {key} AS key, max(source_seq) AS last_seq FROM outbox"
            " WHERE created_at >= to_timestamp(%(since)s / 1000.0) AND (%(all)s OR type = ANY(%(types)s))"
            f" AND {key} > %(after)s GROUP BY 1, 2, 3, 4 ORDER BY 4 LIMIT %(limit)s",
            {"since": since_ms, "all": not types, "types": list(types), "after": after, "limit": limit},
        )
        now = tx.row("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS ms")["ms"]
    found = [
        event_pb2.Head(
            stream=event_pb2.Stream(subject_type=row["subject_type"], subject_id=row["subject_id"]),
            last_seq=row["last_seq"],
            type=row["kind"],
        )
        for row in rows
    ]
    return Heads(found, rows[-1]["key"] if len(rows) == limit else "", now)


def fetch(
    database: Database, *, subject: tuple[str, str], from_seq: int, types: Sequence[str], limit: int
) -> list[event_pb2.Event]:
    """Read events of one stream again, from a number on, in order."""
    with database.transaction() as tx:
        rows = tx.all(
            f"SELECT {_COLUMNS} FROM outbox WHERE subject_type = %s AND subject_id = %s AND source_seq >= %s"
            " AND (%s OR type = ANY(%s)) ORDER BY source_seq LIMIT %s",
            (*subject, from_seq, not types, list(types), limit),
        )
    return [_event(row, database.room) for row in rows]
