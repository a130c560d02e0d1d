"""An event of another room becomes a record. Started by the consumer, for every event, known action or not.

What was lost after that is stored again from its source (intervention RecreateAuditEvent): byte for byte, at the number
that it had in the list of its subject.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from korrigo_kit import inbox
from korrigo_kit.db import Tx, UniqueViolation
from korrigo_kit.outbox import leaf_hash, mark_sent
from korrigo_kit.room import Runtime
from korrigo_kit.telemetry.logs import AUDIT
from korrigo_protos.common.v1 import event_pb2

audit_log = logging.getLogger(AUDIT)

# Streams with a hole that one intervention looks at.
_MOST_STREAMS = 200
_COLUMNS = (
    "(subject_type, subject_id, source, source_seq, seq, id, type, action, actor_id, at, happened_at, metadata,"
    " request_id, leaf, leaf_hash)"
)
_VALUES = (
    "%(subject_type)s, %(subject_id)s, %(source)s, %(source_seq)s, {seq}, %(id)s, %(type)s, %(action)s, %(actor_id)s,"
    " %(at)s::text, %(at)s::text::timestamptz, %(metadata)s, %(request_id)s, %(leaf)s, %(hash)s"
)


def append(tx: Tx, event: event_pb2.Event) -> None:
    """Store an event and give it the next number of its stream."""
    values = _record(event)
    tx.run(
        "WITH head AS (INSERT INTO record_heads AS h (subject_type, subject_id, last_seq)"
        "   VALUES (%(subject_type)s, %(subject_id)s, 1)"
        "   ON CONFLICT (subject_type, subject_id) DO UPDATE SET last_seq = h.last_seq + 1 RETURNING last_seq)"
        f" INSERT INTO records {_COLUMNS} SELECT {_VALUES.format(seq='last_seq')} FROM head",
        values,
    )
    tx.after_commit(lambda: _log(values))


def _log(values: Mapping[str, Any]) -> None:
    """Write the audit log's line of an act that is stored now; what has no action is no act of anybody."""
    if not values["action"]:
        return
    subject_type, subject_id = values["subject_type"], values["subject_id"]
    told = ("action", "actor_id", "source", "source_seq", "request_id")
    audit_log.info(
        "%s of %s %s",
        values["action"],
        subject_type,
        subject_id,
        extra={name: values[name] for name in told}
        | {"event_id": values["id"], "happened_at": values["at"], f"{subject_type}_id": subject_id},
    )


def _record(event: event_pb2.Event) -> dict[str, Any]:
    leaf = json.loads(event.leaf)
    return {
        "subject_type": event.stream.subject_type,
        "subject_id": event.stream.subject_id,
        "source": event.source,
        "source_seq": event.source_seq,
        "id": event.id,
        "type": event.type,
        "action": leaf["action"],
        "actor_id": leaf["actor_id"],
        "at": leaf["at"],
        "metadata": json.dumps(leaf["metadata"]),
        "request_id": leaf["request_id"],
        "leaf": event.leaf,
        "hash": leaf_hash(event.leaf),
    }


def hear(tx: Tx, event: event_pb2.Event) -> None:
    """Store what audit itself did, in the transaction that did it: nobody else follows audit."""
    append(tx, event)
    mark_sent(tx, [event.id])


@dataclass(frozen=True, slots=True)
class Gap:
    """A number that was told and is not stored; `is_kept` = its source still has it."""

    source: str
    stream: event_pb2.Stream
    source_seq: int
    is_kept: bool
    event_id: str = ""


def missing(rt: Runtime, subject: tuple[str, str] | None) -> list[Gap]:
    """List what is missing of one subject, or what was removed of any, in the order in which it happened.

    Raises Unavailable when a source that has to be asked does not answer.
    """
    with rt.db.transaction() as tx:
        rows = tx.all(
            "SELECT i.source, i.subject_type, i.subject_id, i.last_seq FROM inbox i LEFT JOIN (SELECT source,"
            "   subject_type, subject_id, count(*) AS held FROM records GROUP BY 1, 2, 3) r"
            " USING (source, subject_type, subject_id) WHERE i.kind = '' AND (i.last_seq > coalesce(r.held, 0)"
            "   OR (i.subject_type = %(type)s AND i.subject_id = %(id)s))"
            " AND (%(all)s OR (i.subject_type = %(type)s AND i.subject_id = %(id)s)) LIMIT %(limit)s",
            {
                "type": subject[0] if subject else "",
                "id": subject[1] if subject else "",
                "all": subject is None,
                "limit": _MOST_STREAMS,
            },
        )
    gaps = [gap for row in rows for gap in _gaps(rt, row, is_tail_wanted=subject is not None)]
    # A UUIDv7 begins with its time; what nobody keeps comes last.
    return sorted(gaps, key=lambda gap: (gap.event_id or "g", gap.source, gap.source_seq))


def _gaps(rt: Runtime, row: dict[str, Any], *, is_tail_wanted: bool) -> Iterator[Gap]:
    stream = event_pb2.Stream(subject_type=row["subject_type"], subject_id=row["subject_id"])
    with rt.db.transaction() as tx:
        found = tx.all(
            "SELECT n FROM generate_series(1, %(last_seq)s) n WHERE NOT EXISTS (SELECT 1 FROM records"
            " WHERE source = %(source)s AND subject_type = %(subject_type)s AND subject_id = %(subject_id)s"
            " AND source_seq = n)",
            row,
        )
    numbers = [item["n"] for item in found]
    if not numbers and not is_tail_wanted:
        return
    first = numbers[0] if numbers else row["last_seq"] + 1
    kept = {event.source_seq: event.id for event in rt.channels.fetch(row["source"], stream, first, ())}
    tail = [number for number in sorted(kept) if number > row["last_seq"]] if is_tail_wanted else []
    for number in (*numbers, *tail):
        yield Gap(row["source"], stream, number, number in kept, kept.get(number, ""))


def put_back(rt: Runtime, source: str, subject: tuple[str, str], source_seq: int) -> bool:
    """Store one missing event again; True when it is there afterwards, False when its source no longer keeps it.

    Raises Unavailable when the source does not answer.
    """
    stream = event_pb2.Stream(subject_type=subject[0], subject_id=subject[1])
    if _is_stored(rt, source, subject, source_seq):
        return True
    if source_seq > _applied(rt, source, subject):
        for subscription in rt.room.subscriptions(rt):
            if subscription.source == source:
                inbox.fill(rt.db, subscription, stream, "", rt.channels)
        return _is_stored(rt, source, subject, source_seq)
    events = [event for event in rt.channels.fetch(source, stream, source_seq, ()) if event.source_seq == source_seq]
    if not events:
        return False
    try:
        with rt.db.transaction() as tx:
            _insert_at_its_place(tx, events[0])
    except UniqueViolation:  # somebody was faster
        return _is_stored(rt, source, subject, source_seq)
    return True


def _insert_at_its_place(tx: Tx, event: event_pb2.Event) -> None:
    values = _record(event)
    place = tx.one(
        "SELECT n FROM record_heads h, generate_series(1, h.last_seq) n WHERE h.subject_type = %(subject_type)s"
        " AND h.subject_id = %(subject_id)s AND NOT EXISTS (SELECT 1 FROM records r WHERE r.seq = n"
        "   AND r.subject_type = h.subject_type AND r.subject_id = h.subject_id) ORDER BY n LIMIT 1",
        values,
    )
    if place is None:  # its number was given away
        append(tx, event)
        return
    tx.run(f"INSERT INTO records {_COLUMNS} SELECT {_VALUES.format(seq='%(seq)s')}", values | {"seq": place["n"]})
    tx.after_commit(lambda: _log(values))


def _is_stored(rt: Runtime, source: str, subject: tuple[str, str], source_seq: int) -> bool:
    with rt.db.transaction() as tx:
        row = tx.one(
            "SELECT 1 AS ok FROM records WHERE source = %s AND subject_type = %s AND subject_id = %s"
            " AND source_seq = %s",
            (source, *subject, source_seq),
        )
    return row is not None


def _applied(rt: Runtime, source: str, subject: tuple[str, str]) -> int:
    with rt.db.transaction() as tx:
        row = tx.one(
            "SELECT last_seq FROM inbox WHERE source = %s AND subject_type = %s AND subject_id = %s AND kind = ''",
            (source, *subject),
        )
    return int(row["last_seq"]) if row else 0


def causes(event: event_pb2.Event) -> dict[str, int]:
    """Tell which numbers of other rooms the source had seen when it wrote the event (metadata key `after`)."""
    metadata = json.loads(event.leaf).get("metadata", {})
    after = metadata.get("after", {})
    return {str(source): int(number) for source, number in after.items()} if isinstance(after, dict) else {}
