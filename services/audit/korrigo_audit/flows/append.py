"""An event of another room becomes a record. Started by the consumer, for every event, known action or not."""

from __future__ import annotations

import json

from korrigo_kit.db import Tx
from korrigo_kit.outbox import leaf_hash
from korrigo_protos.common.v1 import event_pb2


def append(tx: Tx, event: event_pb2.Event) -> None:
    """Store an event and give it the next number of its stream."""
    leaf = json.loads(event.leaf)
    tx.run(
        "WITH head AS (INSERT INTO record_heads AS h (subject_type, subject_id, last_seq)"
        "   VALUES (%(subject_type)s, %(subject_id)s, 1)"
        "   ON CONFLICT (subject_type, subject_id) DO UPDATE SET last_seq = h.last_seq + 1 RETURNING last_seq)"
        " INSERT INTO records (subject_type, subject_id, source, source_seq, seq, id, type, action, actor_id, at,"
        "   happened_at, metadata, request_id, leaf, leaf_hash)"
        " SELECT %(subject_type)s, %(subject_id)s, %(source)s, %(source_seq)s, last_seq, %(id)s, %(type)s,"
        "   %(action)s, %(actor_id)s, %(at)s::text, %(at)s::text::timestamptz, %(metadata)s, %(request_id)s,"
        "   %(leaf)s, %(hash)s"
        " FROM head",
        {
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
        },
    )


def causes(event: event_pb2.Event) -> dict[str, int]:
    """Tell which numbers of other rooms the source had seen when it wrote the event (metadata key `after`)."""
    metadata = json.loads(event.leaf).get("metadata", {})
    after = metadata.get("after", {})
    return {str(source): int(number) for source, number in after.items()} if isinstance(after, dict) else {}
