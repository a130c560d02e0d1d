"""Blobs that no room names any more go to the trash: mark and sweep. Started by `korrigo cleanup_orphaned_files`.

    list the store -> ask every room (gRPC) -> unnamed: a candidate, noted with the database's time
                                              -> a candidate for a day, not stored again since: to the trash
    afterwards every room is asked again: what was named meanwhile comes back; the trash is emptied after 30 days

A room that does not answer stops the sweep, and so does a share of the store that looks like a mistake: whatever is
wrong then, nothing is lost (reliability.md 7). Which room names a blob and why is none of this flow's business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from korrigo_ingest import events
from korrigo_ingest.peers import referenced
from korrigo_kit.errors import StateConflict
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

log = logging.getLogger("korrigo.orphans")

GRACE_SECONDS = 24 * 3600
KEEP_TRASH_SECONDS = 30 * 24 * 3600
# More than this share of the store at once is taken for a mistake (reliability.md 7).
MOST_SHARE = 0.02
# In a small store one blob is more than 2 %; so few can be looked at by a person.
ALWAYS_ALLOWED = 10
_AT_ONCE = 500
Progress = Callable[[str, int], None]


@dataclass
class Swept:
    """What one sweep found and did."""

    seen: int = 0
    unnamed: int = 0
    due: list[str] = field(default_factory=list)
    removed_count: int = 0
    restored_count: int = 0
    emptied_count: int = 0


def sweep(
    rt: Runtime,
    *,
    is_dry_run: bool,
    is_forced: bool = False,
    actor_id: str = SYSTEM_ACTOR,
    grace_seconds: float = GRACE_SECONDS,
    progress: Progress = lambda what, count: None,
) -> Swept:
    """Look at every blob once; trash those that were unnamed at a look a day ago too.

    Raises Unavailable when a room does not answer, StateConflict (TOO_MANY_ORPHANS) over the cap unless forced.
    """
    swept = Swept()
    known = _candidates(rt)
    unnamed: list[str] = []
    for names in _batches(rt):
        swept.seen += len(names)
        unnamed += _unnamed(rt, names)
        progress("looked at", swept.seen)
    swept.unnamed = len(unnamed)
    swept.due = [sha256 for sha256 in unnamed if known.get(sha256, -1.0) >= grace_seconds]
    if not is_dry_run:
        _note(rt, unnamed)
    swept.due = [sha256 for sha256 in swept.due if _is_old(rt, sha256, grace_seconds)]
    _require_few(swept, is_forced)
    if is_dry_run:
        return swept
    for start in range(0, len(swept.due), _AT_ONCE):
        _remove(rt, swept, swept.due[start : start + _AT_ONCE], actor_id)
        progress("removed", swept.removed_count)
    swept.emptied_count = rt.blobs.empty_trash(KEEP_TRASH_SECONDS)
    return swept


def _batches(rt: Runtime) -> Iterator[list[str]]:
    names = (blob.sha256 for blob in rt.blobs.list())
    while batch := list(islice(names, _AT_ONCE)):
        yield batch


def _unnamed(rt: Runtime, names: Sequence[str]) -> list[str]:
    named = referenced(rt, names)
    return [sha256 for sha256 in names if sha256 not in named]


def _candidates(rt: Runtime) -> dict[str, float]:
    with rt.db.transaction() as tx:
        rows = tx.all(
            "SELECT sha256, extract(epoch FROM clock_timestamp() - first_seen_at)::float8 AS age FROM orphan_candidates"
        )
    return {row["sha256"]: row["age"] for row in rows}


def _note(rt: Runtime, unnamed: list[str]) -> None:
    with rt.db.transaction() as tx:
        # What is named again starts anew when it is unnamed again.
        tx.run("DELETE FROM orphan_candidates WHERE NOT sha256 = ANY(%s)", (unnamed,))
        tx.run("INSERT INTO orphan_candidates (sha256) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", (unnamed,))


def _is_old(rt: Runtime, sha256: str, grace_seconds: float) -> bool:
    # Somebody who stores the same bytes again makes them young before he names them.
    touched_at = rt.blobs.touched_at(sha256)
    return touched_at is not None and touched_at <= time.time() - grace_seconds


def _require_few(swept: Swept, is_forced: bool) -> None:
    most = max(ALWAYS_ALLOWED, int(swept.seen * MOST_SHARE))
    if len(swept.due) > most and not is_forced:
        raise StateConflict(
            "TOO_MANY_ORPHANS",
            f"{len(swept.due)} of {swept.seen} blobs would go, more than {MOST_SHARE:.0%}: look why, then force it",
            due=len(swept.due),
            seen=swept.seen,
        )


def _remove(rt: Runtime, swept: Swept, names: list[str], actor_id: str) -> None:
    # The event is written first: a crash leaves a blob told as removed that is there, found again by the next look.
    with rt.db.transaction(actor=actor_id) as tx:
        events.acted(tx, "ORPHANS_TRASHED", actor_id, {"sha256": names, "count": len(names)})
        tx.run("DELETE FROM orphan_candidates WHERE sha256 = ANY(%s)", (names,))
    for sha256 in names:
        rt.blobs.discard(sha256)
    back = [sha256 for sha256 in referenced(rt, names) if rt.blobs.recover(sha256)]
    if back:
        log.warning("%d blobs were named while they were removed and came back", len(back))
    swept.removed_count += len(names) - len(back)
    swept.restored_count += len(back)
