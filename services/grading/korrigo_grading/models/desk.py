"""Who stands at a copy's desk: finding the copy for a caller, and naming why a lock refused him.

The writes themselves check the lease in their statement; only when one touched nothing is the reason looked up here,
so that a write that succeeds costs one statement.
"""

from __future__ import annotations

import logging

from korrigo_grading.domain import access
from korrigo_grading.domain.locks import Refusal, refusal
from korrigo_grading.metrics import grading_lock_conflicts_total
from korrigo_grading.models import copies
from korrigo_grading.models.copies import Copy
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import KorrigoError, NotFound, Unavailable

log = logging.getLogger("grading")

# What the playbooks look for (domain.md 1.18): each line holds "Lock" with conflict, expired or mismatch.
_LINES = {
    "already_locked": "Lock conflict: Copy is locked by another user",
    "missing": "Lock conflict: Lock required",
    "expired": "Lock expired",
    "owner_mismatch": "Lock owner mismatch: Copy is locked by another user",
    "token_mismatch": "Lock token mismatch: Invalid lock token",
    "db_contention": "Lock conflict: Cannot acquire lock",
}


def not_found() -> NotFound:
    """Make the error of a copy that does not exist, at least not for this caller."""
    return NotFound("COPY_NOT_FOUND", "there is no such copy")


def visible(tx: Tx, caller: Principal, copy_id: str) -> Copy:
    """Read a copy that the caller may see; raises Forbidden (FORBIDDEN) and NotFound (COPY_NOT_FOUND)."""
    caller.require(*access.READERS)
    copy = copies.read(tx, copy_id)
    if copy is None or not access.may_see(caller.roles, caller.user_id, copy.corrector_ids, copy.assigned_corrector_id):
        raise not_found()
    return copy


def held_by_admin(tx: Tx, caller: Principal, copy_id: str, *roles: str) -> Copy:
    """Hold a copy's row for a change that needs one of these roles; raises Forbidden and NotFound."""
    caller.require(*roles)
    copy = copies.hold(tx, copy_id)
    if copy is None:
        raise not_found()
    return copy


def marked(caller: Principal, copy: Copy | None) -> Copy:
    """Return a copy of an exam that the caller marks; raises NotFound (COPY_NOT_FOUND)."""
    if copy is None or not access.is_corrector(caller.roles, caller.user_id, copy.corrector_ids):
        raise not_found()
    return copy


def refuse(copy_id: str, found: Refusal) -> KorrigoError:
    """Count and log a lock's refusal and return its error."""
    grading_lock_conflicts_total.labels(found.conflict).inc()
    log.warning("%s", _LINES[found.conflict], extra={"copy_id": copy_id, "reason": found.error.reason})
    return found.error


def already_graded(copy: Copy) -> None:
    """Count and log a request to finalise that came second."""
    grading_lock_conflicts_total.labels("already_graded").inc()
    log.warning(
        "Copy %s already graded (concurrent finalization detected) - rejecting duplicate request",
        copy.id,
        extra={"copy_id": copy.id},
    )


def check_lock(caller: Principal, copy: Copy, token_hash: str) -> None:
    """Raise what the lock says against this caller.

    LOCK_MISSING, LOCK_EXPIRED, LOCK_OWNER_MISMATCH (StateConflict), INVALID_LOCK_TOKEN (Forbidden).
    """
    found = refusal(copy.lock, caller.user_id, token_hash)
    if found is not None:
        raise refuse(copy.id, found)


def diagnose(tx: Tx, caller: Principal, copy_id: str, token_hash: str) -> Copy:
    """Find out why a write under a lease touched nothing; returns the copy when it was not the lease."""
    copy = marked(caller, copies.read(tx, copy_id))
    check_lock(caller, copy, token_hash)
    return copy


def contended(copy_id: str) -> KorrigoError:
    """Make the error of somebody else having been faster between two looks; the client tries again."""
    busy = Unavailable("DATABASE_BUSY", "somebody else is changing the same thing; try again")
    return refuse(copy_id, Refusal(busy, "db_contention"))
