"""Scores of a copy: one row per marking, made by the first write (version 0 before it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from korrigo_grading.domain.scores import Score
from korrigo_grading.models.annotations import COUNTING_MARKING
from korrigo_grading.models.locks import HELD
from korrigo_kit.db import Tx


@dataclass(frozen=True, slots=True)
class Scores:
    """Explicit scores by question (hundredths or "NT") and the appreciation."""

    scores: Mapping[str, Score] = field(default_factory=dict)
    appreciation: str | None = None
    version: int = 0


def read(tx: Tx, copy_id: str, marking: int = COUNTING_MARKING) -> Scores:
    """Read a copy's scores; version 0 and nothing in it before the first write."""
    row = tx.one(
        "SELECT scores, appreciation, version FROM scores WHERE copy_id = %s AND marking = %s", (copy_id, marking)
    )
    return Scores(**row) if row else Scores()


_WRITE = f"""
{HELD}
INSERT INTO scores AS s (copy_id, marking, scores, appreciation, fence, updated_by)
SELECT h.copy_id, h.marking, %(scores)s, %(appreciation)s, h.fence, %(user_id)s FROM held h
ON CONFLICT (copy_id, marking) DO UPDATE SET scores = excluded.scores, appreciation = excluded.appreciation,
    fence = excluded.fence, updated_by = excluded.updated_by, updated_at = clock_timestamp(), version = s.version + 1
WHERE s.version = %(version)s
RETURNING s.version
"""


def write(tx: Tx, values: dict[str, Any]) -> int | None:
    """Replace the scores of a known version and return the new one; None when lease or version are not right."""
    row = tx.one(_WRITE, {**values, "scores": orjson.dumps(values["scores"]).decode()})
    return int(row["version"]) if row else None
