"""An act that was done and never told is told afterwards, and says so. Started by `korrigo audit backfill`.

Whether it is missing, audit knows; here the copy must have come so far that the act was done. Why it is told is typed
by a person, so the event holds a commitment to it (decisions.md, Leaf v1).
"""

from __future__ import annotations

from korrigo_grading.events import copies as events
from korrigo_grading.models import copies
from korrigo_kit.auth import Principal
from korrigo_kit.errors import Forbidden, Invalid, NotFound
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

ACTIONS = ("IMPORT", "VALIDATE", "LOCK", "FINALIZE")
_LONGEST_REASON = 500


def status_of(rt: Runtime, copy_id: str) -> str:
    """Return a copy's status; raises NotFound (COPY_NOT_FOUND)."""
    with rt.db.transaction() as tx:
        copy = copies.read(tx, copy_id)
    if copy is None:
        raise NotFound("COPY_NOT_FOUND", "there is no such copy")
    return copy.status


def backfill(rt: Runtime, by: Principal, copy_id: str, action: str, reason: str) -> None:
    """Tell an act of a copy afterwards, in the name of an admin.

    Raises Forbidden (NOT_AN_ADMIN), Invalid (UNKNOWN_ACTION, REASON_REQUIRED) and NotFound (COPY_NOT_FOUND).
    """
    if by.user_id == SYSTEM_ACTOR or not by.has("admin"):
        raise Forbidden("NOT_AN_ADMIN", "an act is told afterwards in the name of an admin: --as")
    if action not in ACTIONS:
        raise Invalid("UNKNOWN_ACTION", f"an act that every copy has is one of {', '.join(ACTIONS)}")
    if not reason.strip() or len(reason) > _LONGEST_REASON:
        raise Invalid("REASON_REQUIRED", f"say why, in at most {_LONGEST_REASON} characters")
    with rt.db.transaction(actor=by.user_id, roles=by.roles) as tx:
        copy = copies.hold(tx, copy_id)
        if copy is None:
            raise NotFound("COPY_NOT_FOUND", "there is no such copy")
        facts: dict[str, object] = {"backfilled": True, "by": by.user_id}
        if action == "FINALIZE":
            facts |= {"success": True, "revision": copy.revision, "retries": copy.grading_retries}
            facts["final_score"] = None if copy.final_score is None else copy.final_score / 100
        events.recorded(tx, copy_id, action, by.user_id, facts, {"reason": reason.strip()})
