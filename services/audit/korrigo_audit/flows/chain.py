"""Is every stored event as it was told? Looked at piece by piece, round and round; the metric says what was found.

A piece is verified every minute, so that the sweeper is never kept long; a trail of a school year takes some minutes a
round. A finding counts until a whole round was clean again. An event that never came is no finding here: that is
incomplete, not changed (flows.completeness).
"""

from __future__ import annotations

from typing import Any

import orjson

from korrigo_audit.domain.sequences import Record, check
from korrigo_kit.db import Tx
from korrigo_kit.room import Runtime

_NAME = "chain"
# About a second of work.
PIECE = 20_000
_PAGE = 2000
_COLUMNS = (
    "subject_type, subject_id, source, source_seq, id::text AS id, action, actor_id, at, metadata, request_id, leaf,"
    " leaf_hash"
)
_START = ["", "", "", 0]


def is_valid(rt: Runtime) -> bool:
    """Tell whether the last whole round and the one under way found nothing."""
    with rt.db.transaction() as tx:
        facts = _facts(tx)
    return not facts["found"] and not facts["found_last"]


def verify_next(rt: Runtime) -> int:
    """Verify the next piece; returns how many findings it has. Periodic work of the sweeper."""
    with rt.db.transaction() as tx:
        facts = _facts(tx)
        records, after = _piece(tx, facts["after"])
    findings = list(check(records))
    facts["found"] += len(findings)
    facts["after"] = after
    if after == _START:
        facts |= {"found_last": facts["found"], "found": 0}
    with rt.db.transaction() as tx:
        tx.run(
            "INSERT INTO heartbeats (name, beat_at, facts) VALUES (%s, clock_timestamp(), %s)"
            " ON CONFLICT (name) DO UPDATE SET beat_at = excluded.beat_at, facts = excluded.facts",
            (_NAME, orjson.dumps(facts).decode()),
        )
    return len(findings)


def _facts(tx: Tx) -> dict[str, Any]:
    row = tx.one("SELECT facts FROM heartbeats WHERE name = %s", (_NAME,))
    return row["facts"] if row else {"after": _START, "found": 0, "found_last": 0}


def _piece(tx: Tx, after: list[Any]) -> tuple[list[Record], list[Any]]:
    """Read some whole streams after a key; the key to go on from is the start again when these were the last."""
    records: list[Record] = []
    key = after
    while True:
        rows = tx.all(
            f"SELECT {_COLUMNS} FROM records WHERE (subject_type, subject_id, source, source_seq) > (%s, %s, %s, %s)"
            f" ORDER BY subject_type, subject_id, source, source_seq LIMIT {_PAGE}",
            key,
        )
        for row in rows:
            last = records[-1] if len(records) >= PIECE else None
            if last and _stream(last) != (row["subject_type"], row["subject_id"], row["source"]):
                return records, [*_stream(last), last.source_seq]
            records.append(Record(**{**row, "leaf": bytes(row["leaf"]), "leaf_hash": bytes(row["leaf_hash"])}))
        if len(rows) < _PAGE:
            return records, list(_START)
        key = [*_stream(records[-1]), records[-1].source_seq]


def _stream(record: Record) -> tuple[str, str, str]:
    return record.subject_type, record.subject_id, record.source
