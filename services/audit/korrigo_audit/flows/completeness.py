"""Which events the trail lacks: told by a room and never applied, or applied and no longer there.

The number of the last event that was applied is kept apart from the records (kit's inbox), so a record that was
removed is missed; what was told and not yet applied is asked of the source, for the streams that moved since the last
whole catching up.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping

from korrigo_audit.domain.sequences import ACTIONS, OTHER_ACTION
from korrigo_kit.errors import KorrigoError
from korrigo_kit.inbox import LOOK_BACK_MS
from korrigo_kit.room import Runtime
from korrigo_protos.common.v1 import event_pb2

SOURCES = ("ingest", "grading", "render")
# Younger events may still be on their way (contract.md: within a second).
GRACE_SECONDS = 10.0
# Streams whose missing events are looked at one by one; beyond this the number alone matters.
_LOOKED_AT = 50

_Stream = tuple[str, str, str]


def missing(rt: Runtime, grace_seconds: float = GRACE_SECONDS) -> Mapping[str, int]:
    """Count the missing events by action; one that was told within the grace may still be on its way."""
    counted: Counter[str] = Counter()
    for stream, numbers in _removed(rt).items():
        counted.update(_actions(rt, stream, numbers, 0))
    for stream, numbers in [*_behind(rt).items()][:_LOOKED_AT]:
        counted.update(_actions(rt, stream, numbers, grace_seconds))
    return counted


def _removed(rt: Runtime) -> dict[_Stream, list[int]]:
    with rt.db.transaction() as tx:
        rows = tx.all(
            "SELECT i.source, i.subject_type, i.subject_id, i.last_seq FROM inbox i LEFT JOIN (SELECT source,"
            "   subject_type, subject_id, count(*) AS held FROM records GROUP BY 1, 2, 3) r"
            " USING (source, subject_type, subject_id) WHERE i.kind = '' AND i.last_seq > coalesce(r.held, 0)"
            " LIMIT %s",
            (_LOOKED_AT,),
        )
        found = {}
        for row in rows:
            key = (row["source"], row["subject_type"], row["subject_id"])
            gaps = tx.all(
                "SELECT n FROM generate_series(1, %s) n WHERE NOT EXISTS (SELECT 1 FROM records WHERE source = %s"
                " AND subject_type = %s AND subject_id = %s AND source_seq = n)",
                (row["last_seq"], *key),
            )
            found[key] = [gap["n"] for gap in gaps]
    return found


def _behind(rt: Runtime) -> dict[_Stream, list[int]]:
    found: dict[_Stream, list[int]] = {}
    for source in SOURCES:
        try:
            for head in _heads(rt, source):
                last = _applied(rt, source, head.stream)
                if head.last_seq > last:
                    key = (source, head.stream.subject_type, head.stream.subject_id)
                    found[key] = list(range(last + 1, head.last_seq + 1))
        except KorrigoError:  # a room that is away tells nothing; its own metrics tell that
            continue
    return found


def _heads(rt: Runtime, source: str) -> list[event_pb2.Head]:
    with rt.db.transaction() as tx:
        row = tx.one("SELECT looked_at_ms FROM inbox_looks WHERE source = %s AND kind = ''", (source,))
    since_ms = max(0, (row["looked_at_ms"] if row else 0) - LOOK_BACK_MS)
    heads: list[event_pb2.Head] = []
    page = ""
    while True:
        answer = rt.channels.heads(source, since_ms, page, ())
        heads += answer.heads
        page = answer.next_page_token
        if not page:
            return heads


def _applied(rt: Runtime, source: str, stream: event_pb2.Stream) -> int:
    with rt.db.transaction() as tx:
        row = tx.one(
            "SELECT last_seq FROM inbox WHERE source = %s AND subject_type = %s AND subject_id = %s AND kind = ''",
            (source, stream.subject_type, stream.subject_id),
        )
    return int(row["last_seq"]) if row else 0


def _actions(rt: Runtime, stream: _Stream, numbers: list[int], grace_seconds: float) -> Counter[str]:
    """Name the missing events by asking their source again; one that it no longer has is OTHER."""
    source, subject_type, subject_id = stream
    asked = event_pb2.Stream(subject_type=subject_type, subject_id=subject_id)
    try:
        events = {event.source_seq: event for event in rt.channels.fetch(source, asked, numbers[0], ())}
    except KorrigoError:
        events = {}
    counted: Counter[str] = Counter()
    for number in numbers:
        event = events.get(number)
        if event is None:
            counted[OTHER_ACTION] += 1
        elif _age_seconds(event) >= grace_seconds:
            action = json.loads(event.leaf)["action"]
            counted[action if action in ACTIONS else OTHER_ACTION] += 1
    return counted


def _age_seconds(event: event_pb2.Event) -> float:
    # The id is a UUIDv7: its first 48 bits are the milliseconds of its making.
    return time.time() - int(event.id.replace("-", "")[:12], 16) / 1000
