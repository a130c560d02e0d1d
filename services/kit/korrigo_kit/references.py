"""Which blobs a room refers to: what the integrity check walks through (the orphan sweep asks by gRPC)."""

from __future__ import annotations

from collections.abc import Iterator

from korrigo_kit.db import Database


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
