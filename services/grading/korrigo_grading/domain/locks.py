"""The rules of a lock: who may take it, what a refused holder is told (decisions.md, Lock and Lock errors).

A lock is a lease with a fence: it ends by the database's clock, and every grant carries a number higher than all
before. The statements in `models.locks` decide; this module names the reasons, in one order for all wires:

    no row                          409 LOCK_MISSING          (404 on heartbeat)
    the lease ended                 409 LOCK_EXPIRED          (404 on heartbeat)
    held by another account         409 LOCK_OWNER_MISMATCH
    token missing or another        403 INVALID_LOCK_TOKEN
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from korrigo_kit.errors import Forbidden, KorrigoError, StateConflict

# What a lock refuses: the label values of grading_lock_conflicts_total (domain.md 1.4).
CONFLICTS = (
    "already_locked",
    "missing",
    "expired",
    "owner_mismatch",
    "token_mismatch",
    "already_graded",
    "db_contention",
)
# The end of a lease that was ended by SQL (korrigo.playbook writes it): no lease can end then by itself.
FORCED_AT = datetime(1970, 1, 1, tzinfo=UTC)
_TOKEN_LABEL = b"korrigo lock token v1"


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock as the database has it at `now`."""

    owner_id: str
    owner_name: str
    client_id: str | None
    token_hash: str
    fence: int
    marking: int
    ttl_seconds: int
    acquired_at: datetime
    heartbeat_at: datetime
    expires_at: datetime
    now: datetime

    @property
    def is_live(self) -> bool:
        return self.expires_at > self.now

    @property
    def is_forced(self) -> bool:
        """Tell whether somebody ended the lease by SQL."""
        return self.expires_at == FORCED_AT

    @property
    def held_seconds(self) -> int:
        return max(0, int((self.now - self.acquired_at).total_seconds()))

    @property
    def silent_seconds(self) -> int:
        return max(0, int((self.now - self.heartbeat_at).total_seconds()))

    def is_stale(self, stale_seconds: int) -> bool:
        """Tell whether the holder has been silent so long that others may take over."""
        return self.silent_seconds >= stale_seconds


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a lock refused, as an error and as the label of the conflict metric."""

    error: KorrigoError
    conflict: str


def token(secret: str, copy_id: str, fence: int, owner_id: str) -> str:
    """Derive the token of a grant (64 hexadecimal digits).

    Nothing but the installation's secret and the grant goes in, so the same tab can be given its token again
    although only a hash is stored; the fence makes every grant's token another.
    """
    key = hmac.digest(secret.encode(), _TOKEN_LABEL, "sha256")
    return hmac.new(key, f"{copy_id}|{fence}|{owner_id}".encode(), "sha256").hexdigest()


def token_hash(token: str | None) -> str:
    """Return what is stored and compared instead of a token."""
    return hashlib.sha256((token or "").encode("utf-8", "surrogatepass")).hexdigest()


def refusal(lock: Lock | None, user_id: str, offered_hash: str) -> Refusal | None:
    """Tell why a holder's call is refused; None when the lock is his, live, and the token right."""
    if lock is None:
        return Refusal(StateConflict("LOCK_MISSING", "nobody holds the lock of this copy; lock it first"), "missing")
    if not lock.is_live:
        return Refusal(StateConflict("LOCK_EXPIRED", "the lock has expired; lock the copy again"), "expired")
    if lock.owner_id != user_id:
        owner = {"id": lock.owner_id, "username": lock.owner_name}
        error = StateConflict("LOCK_OWNER_MISMATCH", "the copy is locked by another user", owner=owner)
        return Refusal(error, "owner_mismatch")
    if not hmac.compare_digest(lock.token_hash, offered_hash):
        return Refusal(Forbidden("INVALID_LOCK_TOKEN", "the X-Lock-Token header is missing or wrong"), "token_mismatch")
    return None


def held(lock: Lock, user_id: str, stale_seconds: int) -> Refusal:
    """Say that a live lock is in the way, and whether it may be taken over."""
    is_same_user = lock.owner_id == user_id
    error = StateConflict(
        "LOCK_HELD",
        "you hold this lock in another tab" if is_same_user else "the copy is locked by another user",
        owner={"id": lock.owner_id, "username": lock.owner_name},
        age=lock.held_seconds,
        silent_seconds=lock.silent_seconds,
        stale=lock.is_stale(stale_seconds),
        same_user=is_same_user,
        expires_in=max(0, int((lock.expires_at - lock.now).total_seconds())),
    )
    return Refusal(error, "already_locked")


def may_take_over(lock: Lock, user_id: str, *, is_admin: bool, stale_seconds: int) -> bool:
    """Tell whether a live lock yields: to its own user, to an admin, to anybody once it is stale."""
    return lock.owner_id == user_id or is_admin or lock.is_stale(stale_seconds)
