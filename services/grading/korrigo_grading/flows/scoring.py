"""Scores of a copy: read as a whole sheet, written question by question under a lease. Started by `rest.scores`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from korrigo_grading.domain import access
from korrigo_grading.domain import scores as rules
from korrigo_grading.domain.locks import token_hash
from korrigo_grading.domain.scores import Sheet
from korrigo_grading.events import copies as events
from korrigo_grading.models import annotations as rows
from korrigo_grading.models import desk, locks, scores
from korrigo_grading.models.copies import Copy
from korrigo_grading.models.scores import Scores
from korrigo_grading.models.texts import drawable
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import Invalid, Stale
from korrigo_kit.room import Runtime

log = logging.getLogger("grading")

MAX_APPRECIATION_LENGTH = 10_000


@dataclass(frozen=True, slots=True)
class Marks:
    """What was written about a copy and what it comes to."""

    written: Scores
    sheet: Sheet


def read(rt: Runtime, caller: Principal, copy_id: str) -> Marks:
    """Return the marks of a copy that the caller may see."""
    with rt.db.transaction() as tx:
        copy = desk.visible(tx, caller, copy_id)
        return _marks(tx, copy, scores.read(tx, copy_id))


def write(
    rt: Runtime,
    caller: Principal,
    copy_id: str,
    token: str | None,
    given: Mapping[str, Any],
    approve: Callable[[Marks], None],
) -> Marks:
    """Write scores and appreciation: what is left out stays, null clears; nothing new writes nothing.

    `given` may hold "scores" {question id: number | null | "NT"} and "appreciation"; `approve` is shown the marks
    under the lock and raises when the caller has not seen them. Raises Invalid (INVALID_SCORE,
    UNSUPPORTED_CHARACTER), Stale and what the lock says.
    """
    caller.require(*access.MARKERS)
    proof = {"copy_id": copy_id, "user_id": caller.user_id, "token_hash": token_hash(token)}
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        # One writer of scores at a time: a merge must not overwrite what a twin request just merged.
        seized = locks.seize(tx, **proof)
        copy = desk.diagnose(tx, caller, copy_id, proof["token_hash"])
        if seized is None:
            raise desk.contended(copy_id)
        before = scores.read(tx, copy_id, seized["marking"])
        try:
            approve(_marks(tx, copy, before))
        except Stale as stale:
            if stale.reason == "VERSION_MISMATCH":
                log.warning("OptimisticLockingException: scores of copy %s changed meanwhile", copy_id)
            raise
        merged = rules.merge(before.scores, rules.parse(given.get("scores", {}), copy.leaves))
        appreciation = _appreciation(given, before)
        changed = rules.differences(before.scores, merged)
        if not changed and appreciation == before.appreciation:
            return _marks(tx, copy, before)
        version = scores.write(tx, {**proof, "scores": merged, "appreciation": appreciation, "version": before.version})
        if version is None:
            raise desk.contended(copy_id)
        _tell(tx, caller, copy, changed, before.appreciation, appreciation, version)
        return _marks(tx, copy, Scores(merged, appreciation, version))


def _marks(tx: Tx, copy: Copy, written: Scores) -> Marks:
    sheet = rules.sheet(copy.leaves, copy.max_score, written.scores, rows.deltas(tx, copy.id))
    return Marks(written, sheet)


def _appreciation(given: Mapping[str, Any], before: Scores) -> str | None:
    if "appreciation" not in given:
        return before.appreciation
    text = given["appreciation"]
    if text is None:
        return None
    if len(text) > MAX_APPRECIATION_LENGTH:
        raise Invalid(
            "CONTENT_TOO_LONG", f"a text has at most {MAX_APPRECIATION_LENGTH} characters", field="appreciation"
        )
    return drawable("appreciation", text)


def _tell(
    tx: Tx,
    caller: Principal,
    copy: Copy,
    changed: Mapping[str, Any],
    before: str | None,
    after: str | None,
    version: int,
) -> None:
    is_text_new = before != after
    events.recorded(
        tx,
        copy.id,
        "SCORE",
        caller.user_id,
        {"changed": changed, "appreciation_changed": is_text_new, "version": version},
        {"appreciation": after} if is_text_new and after is not None else None,
    )
