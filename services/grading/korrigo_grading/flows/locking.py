"""The lock of a copy: taken, renewed, given back, taken over, forced, and swept when its lease ended.

Started by `rest.locks` and by the room's periodic sweep. A lock is a lease by the database's clock with a fence that
grows with every grant; READY <-> LOCKED goes with it. Every way out writes UNLOCK, save finalising.

A token is never stored. It is the HMAC of (copy, fence, owner) under a key derived from the secret that the rooms
share, so the tab that lost its answer can be given the same token again; the row keeps a hash. After the secret was
changed, a tab that still shows its token keeps it, and one that shows only its client_id gets another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from korrigo_grading.domain import access, statuses
from korrigo_grading.domain import locks as rules
from korrigo_grading.events import copies as events
from korrigo_grading.models import copies, desk, locks
from korrigo_grading.models.copies import Copy
from korrigo_grading.models.locks import Lease, Listed
from korrigo_grading.settings import LockSettings
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import Forbidden, Invalid, KorrigoError, NotFound
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

log = logging.getLogger("grading")

_SWEEP_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Wish:
    """What the client sent: how long, from which tab, and the token it has."""

    ttl_seconds: int | None = None
    client_id: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A lock as its holder gets it."""

    copy_id: str
    token: str
    fence: int
    owner_id: str
    owner_name: str
    expires_at: datetime
    expires_in: int
    now: datetime
    is_new: bool


def acquire(rt: Runtime, caller: Principal, copy_id: str, wish: Wish) -> Held:
    """Lock a copy, or renew the caller's own lock from the same tab.

    Raises Forbidden (FORBIDDEN, NOT_ASSIGNED), NotFound, StateConflict (LOCK_HELD, INVALID_STATUS,
    FINALIZE_IN_PROGRESS, COPY_ALREADY_GRADED).
    """
    with _transaction(rt, caller) as tx:
        copy = _lockable(tx, caller, copy_id)
        lock = copy.lock
        if lock is not None and lock.is_live:
            if not _is_same_session(lock, caller, wish):
                raise desk.refuse(copy_id, rules.held(lock, caller.user_id, _settings(rt).stale_seconds))
            renewed = _renew(tx, rt, caller, copy, lock, wish)
            if renewed is not None:
                return renewed
        return _grant(tx, rt, caller, copy, wish, take_over=False)


def take_over(rt: Runtime, caller: Principal, copy_id: str, wish: Wish) -> Held:
    """Take the lock from its holder: his own other tab, a holder gone silent, or anybody when an admin asks.

    Raises as `acquire`; LOCK_HELD when the holder is another and not stale.
    """
    with _transaction(rt, caller) as tx:
        copy = _lockable(tx, caller, copy_id)
        return _grant(tx, rt, caller, copy, wish, take_over=True)


def heartbeat(rt: Runtime, caller: Principal, copy_id: str, token: str | None) -> Lease:
    """Renew a lease; never one that ended.

    Raises NotFound (COPY_NOT_FOUND, LOCK_MISSING, LOCK_EXPIRED), StateConflict (LOCK_OWNER_MISMATCH) and Forbidden
    (INVALID_LOCK_TOKEN).
    """
    caller.require(*access.MARKERS)
    token_hash = rules.token_hash(token)
    with _transaction(rt, caller) as tx:
        marks_any = caller.has(*access.MARKS_ANY)
        lease = locks.beat(tx, copy_id=copy_id, user_id=caller.user_id, token_hash=token_hash, marks_any=marks_any)
        if lease is not None:
            return lease
        try:
            desk.diagnose(tx, caller, copy_id, token_hash)
        except KorrigoError as error:
            if error.reason in ("LOCK_MISSING", "LOCK_EXPIRED"):
                raise NotFound(error.reason, error.message) from None
            raise
        raise desk.contended(copy_id)


def release(rt: Runtime, caller: Principal, copy_id: str, token: str | None) -> None:
    """Give the lock back; done already is done. Raises StateConflict (LOCK_OWNER_MISMATCH) and Forbidden."""
    caller.require(*access.MARKERS)
    token_hash = rules.token_hash(token)
    with _transaction(rt, caller) as tx:
        copy = desk.marked(caller, copies.hold(tx, copy_id))
        if copy.lock is None or not copy.lock.is_live:
            return
        desk.check_lock(caller, copy, token_hash)
        if locks.release(tx, copy_id=copy_id, user_id=caller.user_id, token_hash=token_hash):
            _unlock(tx, copy, reason="released", actor_id=caller.user_id)


def force(rt: Runtime, caller: Principal, copy_id: str, reason: str, *, fence: int | None = None) -> None:
    """End a lock whoever holds it; admins only, with a reason that stays out of the events.

    With `fence` only that very lock, never one that came after it. Raises Forbidden, NotFound (COPY_NOT_FOUND,
    LOCK_MISSING) and Invalid (REASON_REQUIRED).
    """
    caller.require("admin")
    if not reason.strip():
        raise Invalid("REASON_REQUIRED", "say why the lock is ended", field="reason")
    with _transaction(rt, caller) as tx:
        copy = desk.held_by_admin(tx, caller, copy_id, "admin")
        is_another = copy.lock is not None and fence not in (None, copy.lock.fence)
        if copy.lock is None or is_another or not locks.end(tx, copy_id, copy.lock.fence, only_expired=False):
            raise NotFound("LOCK_MISSING", "nobody holds the lock of this copy")
        _unlock(tx, copy, reason="forced", actor_id=caller.user_id, text=reason)


def held(rt: Runtime, copy_id: str) -> rules.Lock | None:
    """Look at the lock row of a copy, over or not, for operators; raises NotFound (COPY_NOT_FOUND)."""
    with rt.db.transaction() as tx:
        copy = copies.read(tx, copy_id)
    if copy is None:
        raise desk.not_found()
    return copy.lock


def is_stale(rt: Runtime, lock: rules.Lock) -> bool:
    """Tell whether its holder has been silent so long that anybody may take it over."""
    return lock.is_stale(_settings(rt).stale_seconds)


def end_lease(rt: Runtime, copy_id: str) -> bool:
    """End the lease of one copy when it is over, or mend its lost lock; False when there is nothing to do."""
    with rt.db.transaction() as tx:
        return _end_lease(tx, copy_id)


def status(rt: Runtime, caller: Principal, copy_id: str) -> rules.Lock | None:
    """Return the live lock of a copy that the caller may see, or None."""
    with rt.db.transaction() as tx:
        lock = desk.visible(tx, caller, copy_id).lock
    return lock if lock is not None and lock.is_live else None


def listed(rt: Runtime, caller: Principal, after: tuple[str, str] | None, limit: int) -> Sequence[Listed]:
    """List every lock, oldest first, for those who look after them."""
    caller.require("admin", "lead_marker", "auditor")
    with rt.db.transaction() as tx:
        return locks.page(tx, after=after, limit=limit)


def sweep(rt: Runtime) -> int:
    """End every lease that is over and mend copies whose lock row was deleted by hand; returns how many.

    Safe when two do it at once: each copy is held, looked at again and ended by its fence.
    """
    with rt.db.transaction() as tx:
        found = [*locks.expired(tx, _SWEEP_AT_ONCE), *locks.orphaned(tx, _SWEEP_AT_ONCE)]
    done = 0
    for copy_id in found:
        try:
            with rt.db.transaction() as tx:
                done += _end_lease(tx, copy_id)
        except KorrigoError as error:
            # Somebody works on this very copy; the next sweep comes in seconds.
            log.warning("lock of a copy was not swept: %s", error.reason, extra={"copy_id": copy_id})
    return done


def ended(rt: Runtime) -> list[str]:
    """List the copies that the next sweep will unlock."""
    with rt.db.transaction() as tx:
        return [*locks.expired(tx, _SWEEP_AT_ONCE), *locks.orphaned(tx, _SWEEP_AT_ONCE)]


def reconcile(rt: Runtime, copy_id: str, actor_id: str = SYSTEM_ACTOR) -> bool:
    """End the lock of a copy that is not LOCKED, which somebody wrote by hand; False when there is none."""
    with rt.db.transaction(actor=actor_id) as tx:
        copy = copies.hold(tx, copy_id, even_deleted=True)
        if copy is None or copy.lock is None or copy.status == statuses.LOCKED:
            return False
        if not locks.end(tx, copy_id, copy.lock.fence, only_expired=False):
            return False
        _tell_unlock(tx, copy, copy.status, reason="reconciled", actor_id=actor_id)
    return True


def _end_lease(tx: Tx, copy_id: str) -> bool:
    copy = copies.hold(tx, copy_id, even_deleted=True)
    if copy is None or copy.status != statuses.LOCKED:
        return False
    if copy.lock is None:
        _unlock(tx, copy, reason="reconciled")
        return True
    if not locks.end(tx, copy_id, copy.lock.fence, only_expired=True):
        return False
    _unlock(tx, copy, reason=_end_of(copy.lock))
    log.info("Expired lock released for copy %s", copy_id, extra={"copy_id": copy_id})
    return True


def _end_of(lock: rules.Lock) -> str:
    return "forced" if lock.is_forced else "expired"


def _transaction(rt: Runtime, caller: Principal) -> AbstractContextManager[Tx]:
    return rt.db.transaction(actor=caller.user_id, roles=caller.roles)


def _settings(rt: Runtime) -> LockSettings:
    return rt.settings.get(LockSettings)


def _lockable(tx: Tx, caller: Principal, copy_id: str) -> Copy:
    caller.require(*access.MARKERS)
    copy = desk.marked(caller, copies.hold(tx, copy_id))
    if not access.is_assigned(caller.roles, caller.user_id, copy.assigned_corrector_id):
        raise Forbidden("NOT_ASSIGNED", "the copy is assigned to another marker")
    if copy.status != statuses.LOCKED:
        if copy.status == statuses.GRADED:
            desk.already_graded(copy)
        statuses.after("lock", copy.status)
    return copy


def _is_same_session(lock: rules.Lock, caller: Principal, wish: Wish) -> bool:
    if lock.owner_id != caller.user_id:
        return False
    if wish.token is not None and rules.token_hash(wish.token) == lock.token_hash:
        return True
    return wish.client_id is not None and wish.client_id == lock.client_id


def _token(rt: Runtime, copy_id: str, fence: int, owner_id: str) -> str:
    return rules.token(rt.settings.rpc.secret.get_secret_value(), copy_id, fence, owner_id)


def _renew(tx: Tx, rt: Runtime, caller: Principal, copy: Copy, lock: rules.Lock, wish: Wish) -> Held | None:
    token = _token(rt, copy.id, lock.fence, caller.user_id)
    if wish.token is not None and rules.token_hash(wish.token) == lock.token_hash:
        token = wish.token
    lease = locks.refresh(
        tx,
        copy.id,
        fence=lock.fence,
        token_hash=rules.token_hash(token),
        ttl_seconds=wish.ttl_seconds or _settings(rt).ttl_seconds,
        session_id=caller.session_id,
    )
    return _held(copy, caller, token, lock.fence, lease, is_new=False) if lease else None


def _grant(tx: Tx, rt: Runtime, caller: Principal, copy: Copy, wish: Wish, *, take_over: bool) -> Held:
    settings = _settings(rt)
    fence = copy.fence + 1
    token = _token(rt, copy.id, fence, caller.user_id)
    ttl_seconds = wish.ttl_seconds or settings.ttl_seconds
    is_marker = caller.has("marker") and caller.user_id in copy.corrector_ids
    lease = locks.grant(
        tx,
        copy,
        fence=fence,
        owner_id=caller.user_id,
        client_id=wish.client_id,
        session_id=caller.session_id,
        token=token,
        token_hash=rules.token_hash(token),
        ttl_seconds=ttl_seconds,
        assign_to=caller.user_id if is_marker else None,
        take_over=take_over,
        is_admin=caller.has("admin"),
        stale_seconds=settings.stale_seconds,
    )
    if lease is None:
        now = desk.marked(caller, copies.read(tx, copy.id))
        if now.lock is None:
            raise desk.contended(copy.id)
        raise desk.refuse(copy.id, rules.held(now.lock, caller.user_id, settings.stale_seconds))
    _tell_end_of_former(tx, caller, copy)
    events.status_changed(
        tx,
        copy,
        statuses.LOCKED,
        action="LOCK",
        actor_id=caller.user_id,
        metadata={"token_prefix": token[:8], "ttl_seconds": ttl_seconds, "client_id": wish.client_id},
        assigned_corrector_id=lease.assigned_corrector_id,
    )
    return _held(copy, caller, token, fence, lease, is_new=True)


def _tell_end_of_former(tx: Tx, caller: Principal, copy: Copy) -> None:
    lock = copy.lock
    if copy.status != statuses.LOCKED:
        return
    if lock is None:
        reason, actor_id = "reconciled", SYSTEM_ACTOR
    elif lock.is_live:
        reason, actor_id = "takeover", caller.user_id
    else:
        reason, actor_id = _end_of(lock), SYSTEM_ACTOR
        log.info("Expired lock released for copy %s", copy.id, extra={"copy_id": copy.id})
    _tell_unlock(tx, copy, statuses.LOCKED, reason=reason, actor_id=actor_id)


def _unlock(tx: Tx, copy: Copy, *, reason: str, actor_id: str = SYSTEM_ACTOR, text: str | None = None) -> None:
    status = statuses.after("unlock", copy.status)
    copies.unlocked(tx, copy, status)
    _tell_unlock(tx, copy, status, reason=reason, actor_id=actor_id, text=text)


def _tell_unlock(tx: Tx, copy: Copy, status: str, *, reason: str, actor_id: str, text: str | None = None) -> None:
    lock = copy.lock
    since = lock.acquired_at if lock else copy.locked_at
    events.unlocked(
        tx,
        copy,
        status,
        reason=reason,
        previous_owner_id=lock.owner_id if lock else copy.locked_by,
        held_seconds=max(0, int((copy.now - since).total_seconds())) if since else 0,
        actor_id=actor_id,
        texts={"reason": text} if text else None,
    )


def _held(copy: Copy, caller: Principal, token: str, fence: int, lease: Lease, *, is_new: bool) -> Held:
    return Held(
        copy_id=copy.id,
        token=token,
        fence=fence,
        owner_id=caller.user_id,
        owner_name=caller.username,
        expires_at=lease.expires_at,
        expires_in=lease.expires_in,
        now=lease.now,
        is_new=is_new,
    )
