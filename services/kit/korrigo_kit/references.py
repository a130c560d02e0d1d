"""Which blobs a room refers to: what the integrity check walks through, and what the orphan sweep asks every room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from korrigo_kit.db import Database


def referenced(database: Database, sha256: Sequence[str]) -> list[str]:
    """Return those of these blobs that a room refers to."""
    with database.transaction() as tx:
        rows = tx.all("SELECT DISTINCT sha256 FROM blob_refs WHERE sha256 = ANY(%s)", (list(sha256),))
    return [row["sha256"] for row in rows]


def blob_names(database: Database) -> Iterator[str]:
    """Yield the name of every blob that a room refers to, once, in order."""
    last = ""
    while True:
        with database.transaction() as tx:
            rows = tx.all("SELECT DISTINCT sha256 FROM blob_refs WHERE sha256 > %s ORDER BY sha256 LIMIT 1000", (last,))
        yield from (row["sha256"] for row in rows)
        if not rows:
            return
        last = rows[-1]["sha256"]
