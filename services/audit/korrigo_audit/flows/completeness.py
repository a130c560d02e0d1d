"""Which events the trail lacks: told by a room and never applied, or applied and no longer there.

The number of the last event that was applied is kept apart from the records (kit's inbox), so a record that was
removed is missed; what was told and not yet applied is asked of the source, for the streams that moved since the last
whole catching up.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from korrigo_audit.domain.sequences import ACTIONS, OTHER_ACTION
from korrigo_kit.errors import KorrigoError
from korrigo_kit.inbox import LOOK_BACK_MS
from korrigo_kit.room import Runtime
from korrigo_protos.common.v1 import event_pb2

SOURCES = ("ingest", "grading", "render")
# Younger events may still be on their way (contract.md: within a second).
GRACE_SECONDS = 10.0
# Streams whose missing events are looked at one by one, of those that lost records and of those behind; the events of
# the others are counted without asking what they were.
_LOOKED_AT = 50

_Stream = tuple[str, str, str]


def missing(rt: Runtime, grace_seconds: float = GRACE_SECONDS) -> Mapping[str, int]:
    """Count the missing events by action; one that was told within the grace may still be on its way."""
    removed, others = _removed(rt)
    counted: Counter[str] = Counter()
    for stream, numbers in removed.items():
        counted.update(_actions(rt, stream, numbers, 0))
    late = 0
    for source in SOURCES:
        try:
            behind, now_ms = _behind(rt, source)
            named = dict([*behind.items()][: _LOOKED_AT - late])
            others += _quiet(
                rt, source, {key: behind[key] for key in behind.keys() - named.keys()}, now_ms, grace_seconds
            )
        except KorrigoError:  # a room that is away tells nothing; its own metrics tell that
            continue
        late += len(named)
        for stream, seqs in named.items():
            counted.update(_actions(rt, stream, seqs, grace_seconds))
    if others:
        counted[OTHER_ACTION] += others
    return counted


def _removed(rt: Runtime) -> tuple[dict[_Stream, list[int]], int]:
    """Return which numbers some of the streams lost, and how many events all the others did."""
    with rt.db.transaction() as tx:
        rows = tx.all(
            "SELECT i.source, i.subject_type, i.subject_id, i.last_seq, i.last_seq - coalesce(r.held, 0) AS lost,"
            "   (sum(i.last_seq - coalesce(r.held, 0)) OVER ())::bigint AS lost_by_all"
            " FROM inbox i LEFT JOIN (SELECT source,"
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
            if gaps:
                found[key] = [gap["n"] for gap in gaps]
    others = rows[0]["lost_by_all"] - sum(row["lost"] for row in rows) if rows else 0
    return found, others


def _behind(rt: Runtime, source: str) -> tuple[dict[_Stream, range], int]:
    """Return the numbers that a source told and that were not applied, and the source's time in milliseconds."""
    with rt.db.transaction() as tx:
        row = tx.one("SELECT looked_at_ms FROM inbox_looks WHERE source = %s AND kind = ''", (source,))
    heads, now_ms = _heads(rt, source, max(0, (row["looked_at_ms"] if row else 0) - LOOK_BACK_MS))
    applied = _applied(rt, source, [*heads])
    return {
        key: range(applied.get(key, 0) + 1, last + 1) for key, last in heads.items() if last > applied.get(key, 0)
    }, now_ms


def _heads(rt: Runtime, source: str, since_ms: int) -> tuple[dict[_Stream, int], int]:
    heads: dict[_Stream, int] = {}
    page, now_ms = "", 0
    while True:
        answer = rt.channels.heads(source, since_ms, page, ())
        now_ms = now_ms or answer.now_ms
        heads |= {(source, head.stream.subject_type, head.stream.subject_id): head.last_seq for head in answer.heads}
        page = answer.next_page_token
        if not page:
            return heads, now_ms


def _applied(rt: Runtime, source: str, streams: Sequence[_Stream]) -> dict[_Stream, int]:
    with rt.db.transaction() as tx:
        rows = tx.all(
            "SELECT subject_type, subject_id, last_seq FROM inbox WHERE source = %s AND kind = '' AND"
            " (subject_type, subject_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))",
            (source, [key[1] for key in streams], [key[2] for key in streams]),
        )
    return {(source, row["subject_type"], row["subject_id"]): row["last_seq"] for row in rows}


def _quiet(rt: Runtime, source: str, behind: Mapping[_Stream, range], now_ms: int, grace_seconds: float) -> int:
    """Count events that are not asked for one by one; those of a stream that just moved may be on their way."""
    if not behind:
        return 0
    moved = _heads(rt, source, now_ms - int(grace_seconds * 1000))[0] if grace_seconds else {}
    return sum(len(numbers) for stream, numbers in behind.items() if stream not in moved)


def _actions(rt: Runtime, stream: _Stream, numbers: Sequence[int], grace_seconds: float) -> Counter[str]:
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
