"""What a stream must look like: numbers from 1 without gaps per source, and leaves that hash to what was stored.

Pure: rows in, findings out. Source of the rules: decisions.md, Streams and Leaf v1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# The closed set of domain.md 1.3; later rooms add actions, which count as others.
ACTIONS = (
    "IMPORT",
    "VALIDATE",
    "LOCK",
    "UNLOCK",
    "CREATE_ANN",
    "UPDATE_ANN",
    "DELETE_ANN",
    "FINALIZE",
    "EXPORT",
)
OTHER_ACTION = "OTHER"
GAP = "GAP"
LEAF_MISMATCH = "LEAF_MISMATCH"
HASH_MISMATCH = "HASH_MISMATCH"
MISSING_TAIL = "MISSING_TAIL"


@dataclass(frozen=True, slots=True)
class Record:
    """A stored event, as far as checking needs it."""

    subject_type: str
    subject_id: str
    source: str
    source_seq: int
    id: str
    action: str | None
    actor_id: str
    at: str
    metadata: Any
    request_id: str
    leaf: bytes
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where."""

    code: str
    subject_type: str
    subject_id: str
    source: str
    source_seq: int


def check(records: Iterable[Record]) -> Iterator[Finding]:
    """Check records that come ordered by stream, source and number."""
    last: tuple[str, str, str] | None = None
    expected = 1
    for record in records:
        key = (record.subject_type, record.subject_id, record.source)
        if key != last:
            last, expected = key, 1
        for missing in range(expected, record.source_seq):
            yield Finding(GAP, *key, missing)
        expected = record.source_seq + 1
        if hashlib.sha256(b"\x00" + record.leaf).digest() != record.leaf_hash:
            yield Finding(HASH_MISMATCH, *key, record.source_seq)
        elif not _says_the_same(record):
            yield Finding(LEAF_MISMATCH, *key, record.source_seq)


def _says_the_same(record: Record) -> bool:
    try:
        leaf = json.loads(record.leaf)
    except ValueError:
        return False
    expected = {
        "v": 1,
        "id": record.id,
        "stream": {"subject_type": record.subject_type, "subject_id": record.subject_id},
        "source": record.source,
        "source_seq": record.source_seq,
        "action": record.action,
        "actor_id": record.actor_id,
        "at": record.at,
        "metadata": record.metadata,
        "request_id": record.request_id,
    }
    return bool(leaf == expected)
