"""Locks over HTTP (decisions.md, Lock and Lock errors)."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from korrigo_grading.domain import locks as rules
from korrigo_grading.flows import locking as flow
from korrigo_grading.settings import LockSettings
from korrigo_kit.clock import rfc3339
from korrigo_kit.rest import Caller, Page, decode_cursor, encode_cursor, room_runtime
from korrigo_kit.rest.paging import Cursor, Limit
from korrigo_kit.room import Runtime

api = APIRouter(tags=["locks"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]
LockToken = Annotated[
    str | None, Header(alias="X-Lock-Token", max_length=200, description="Token of the lock that the caller holds.")
]


class LockWish(BaseModel):
    """How to lock."""

    model_config = ConfigDict(extra="forbid")
    ttl_seconds: int | None = Field(
        None, strict=True, ge=1, le=3600, description="Life of the lease without a heartbeat; default by settings."
    )
    client_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="Name of the tab or script; the same one gets the same token again.",
    )


class Owner(BaseModel):
    """Who holds a lock."""

    id: UUID
    username: str


class Lock(BaseModel):
    """A lock as its holder gets it."""

    copy_id: UUID
    status: Literal["LOCKED"] = "LOCKED"
    token: str = Field(description="To be sent as X-Lock-Token with every write.")
    fence: int = Field(description="Grows with every grant of this copy's lock.")
    owner: Owner
    expires_at: str = Field(description="RFC 3339, UTC, by the database's clock.")
    expires_in: int = Field(description="Seconds left; use this one, clocks differ.")
    server_time: str = Field(description="RFC 3339, UTC.")


class Heartbeat(BaseModel):
    """A renewed lease."""

    status: Literal["HEARTBEAT_OK"] = "HEARTBEAT_OK"
    expires_at: str
    expires_in: int
    server_time: str


class LockState(BaseModel):
    """Whether a copy is locked, and by whom; never the token."""

    copy_id: UUID
    status: Literal["LOCKED", "UNLOCKED"]
    owner: Owner | None = None
    fence: int | None = None
    is_active_user: bool = Field(False, description="True = the caller holds it.")
    acquired_at: str | None = None
    last_heartbeat_at: str | None = None
    age: int | None = Field(None, description="Seconds since it was taken.")
    stale: bool | None = Field(None, description="True = the holder is silent; others may take over.")
    expires_at: str | None = None
    expires_in: int | None = None
    server_time: str | None = None


class ListedLock(LockState):
    """A lock in the list of all; an expired one is swept within seconds."""

    exam_id: UUID
    anonymous_id: str
    state: Literal["active", "stale", "expired"]


class Reason(BaseModel):
    """Why somebody does what others will see."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(min_length=1, max_length=2000)


def _lock(held: flow.Held, response: Response) -> Lock:
    response.status_code = 201 if held.is_new else 200
    return Lock(
        copy_id=UUID(held.copy_id),
        token=held.token,
        fence=held.fence,
        owner=Owner(id=UUID(held.owner_id), username=held.owner_name),
        expires_at=rfc3339(held.expires_at),
        expires_in=held.expires_in,
        server_time=rfc3339(held.now),
    )


def _wish(body: LockWish | None, token: str | None) -> flow.Wish:
    wish = body or LockWish.model_validate({})
    return flow.Wish(ttl_seconds=wish.ttl_seconds, client_id=wish.client_id, token=token)


def _state(copy_id: str, lock: rules.Lock, user_id: str, stale_seconds: int) -> dict[str, Any]:
    return {
        "copy_id": copy_id,
        "status": "LOCKED",
        "owner": {"id": lock.owner_id, "username": lock.owner_name},
        "fence": lock.fence,
        "is_active_user": lock.owner_id == user_id,
        "acquired_at": rfc3339(lock.acquired_at),
        "last_heartbeat_at": rfc3339(lock.heartbeat_at),
        "age": lock.held_seconds,
        "stale": lock.is_stale(stale_seconds),
        "expires_at": rfc3339(lock.expires_at),
        "expires_in": max(0, round((lock.expires_at - lock.now).total_seconds())),
        "server_time": rfc3339(lock.now),
    }


@api.post(
    "/api/copies/{copy_id}/lock",
    status_code=201,
    responses={200: {"model": Lock, "description": "The caller's own lock, renewed."}},
)
def lock_copy(
    copy_id: UUID,
    caller: Caller,
    rt: Rt,
    response: Response,
    body: LockWish | None = None,
    x_lock_token: LockToken = None,
) -> Lock:
    """Lock a READY copy to mark it (201), or renew one's own lock from the same tab (200, the same token).

    409 LOCK_HELD with owner, age, stale and same_user; 403 NOT_ASSIGNED.
    """
    return _lock(flow.acquire(rt, caller, str(copy_id), _wish(body, x_lock_token)), response)


@api.post("/api/copies/{copy_id}/lock/takeover", status_code=201)
def take_over_lock(copy_id: UUID, caller: Caller, rt: Rt, response: Response, body: LockWish | None = None) -> Lock:
    """Take a lock from one's own other tab, from a holder gone silent, or as an admin; the old token ends."""
    return _lock(flow.take_over(rt, caller, str(copy_id), _wish(body, None)), response)


@api.post("/api/copies/{copy_id}/lock/heartbeat")
def renew_lock(copy_id: UUID, caller: Caller, rt: Rt, x_lock_token: LockToken = None) -> Heartbeat:
    """Renew a lease; 404 when it ended, which no heartbeat undoes."""
    lease = flow.heartbeat(rt, caller, str(copy_id), x_lock_token)
    return Heartbeat(expires_at=rfc3339(lease.expires_at), expires_in=lease.expires_in, server_time=rfc3339(lease.now))


@api.delete("/api/copies/{copy_id}/lock", status_code=204)
def release_lock(copy_id: UUID, caller: Caller, rt: Rt, x_lock_token: LockToken = None) -> None:
    """Give the lock back; 204 also when nobody holds one."""
    flow.release(rt, caller, str(copy_id), x_lock_token)


@api.get("/api/copies/{copy_id}/lock")
def read_lock(copy_id: UUID, caller: Caller, rt: Rt) -> LockState:
    """Tell who holds the lock of a copy."""
    lock = flow.status(rt, caller, str(copy_id))
    if lock is None:
        return LockState.model_validate({"copy_id": copy_id, "status": "UNLOCKED"})
    stale_seconds = rt.settings.get(LockSettings).stale_seconds
    return LockState.model_validate(_state(str(copy_id), lock, caller.user_id, stale_seconds))


@api.get("/api/locks")
def list_locks(caller: Caller, rt: Rt, limit: Limit = 100, cursor: Cursor = None) -> Page[ListedLock]:
    """List every lock, oldest first: who holds what, how long, how silent."""
    after = decode_cursor(cursor, str, str)
    found = flow.listed(rt, caller, (after[0], after[1]) if after else None, limit + 1)
    stale_seconds = rt.settings.get(LockSettings).stale_seconds
    items = []
    for entry in found[:limit]:
        values = _state(entry.copy_id, entry.lock, caller.user_id, stale_seconds)
        state = "expired" if not entry.lock.is_live else "stale" if values["stale"] else "active"
        values.update(exam_id=entry.exam_id, anonymous_id=entry.anonymous_id, state=state)
        items.append(ListedLock.model_validate(values))
    last = found[limit - 1] if len(found) > limit else None
    next_cursor = encode_cursor(rfc3339(last.lock.acquired_at), last.copy_id) if last else None
    return Page(items=items, next_cursor=next_cursor)


@api.delete("/api/locks/{copy_id}", status_code=204)
def force_unlock(copy_id: UUID, body: Reason, caller: Caller, rt: Rt) -> None:
    """End a lock whoever holds it; admins only, with a reason."""
    flow.force(rt, caller, str(copy_id), body.reason)
