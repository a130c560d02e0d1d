"""Logins and accounts over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from korrigo_grading.flows import accounts as flow
from korrigo_grading.flows import sessions
from korrigo_grading.flows.sessions import Login
from korrigo_grading.models.accounts import Account
from korrigo_kit.rest import Caller, IfMatch, Page, decode_cursor, encode_cursor, etag, require_match, room_runtime
from korrigo_kit.rest.caller import COOKIE
from korrigo_kit.rest.paging import Cursor, Limit
from korrigo_kit.room import Runtime

api = APIRouter(tags=["accounts"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]
Role = Literal["admin", "scan_operator", "marker", "lead_marker", "student", "auditor"]
_EMAIL = r"^[^@\s]+@[^@\s]+$"


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoginRequest(_Request):
    """A user name and its password."""

    username: str = Field(min_length=1, max_length=254)
    password: str = Field(min_length=1, max_length=1024)


class PasswordRequest(_Request):
    """One's own password, old and new."""

    current_password: str = Field(min_length=1, max_length=1024)
    new_password: str = Field(min_length=1, max_length=1024, description="At least 12 characters.")


class NewUser(_Request):
    """An account to make."""

    username: str = Field(min_length=1, max_length=150, description="Letters, digits and . @ + - _; without spaces.")
    password: str = Field(min_length=1, max_length=1024, description="At least 12 characters.")
    roles: list[Role] = Field(min_length=1, max_length=6)
    email: str | None = Field(None, max_length=254, pattern=_EMAIL)
    must_change_password: bool = Field(False, strict=True, description="True: nothing works before a new password.")


class UserPatch(_Request):
    """What to change of an account; what is left out stays."""

    roles: list[Role] | None = Field(None, min_length=1, max_length=6)
    active: bool | None = Field(None, strict=True)
    email: str | None = Field(None, max_length=254, pattern=_EMAIL, description="null removes it.")
    password: str | None = Field(None, min_length=1, max_length=1024, description="At least 12 characters.")
    must_change_password: bool | None = Field(None, strict=True)


class UserBrief(BaseModel):
    """Who logged in."""

    id: UUID
    username: str
    roles: list[Role]


class LoginAnswer(BaseModel):
    """A token for the header `Authorization: Bearer`; browsers get the same as a cookie."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a word of RFC 6750
    expires_in: int = Field(description="Seconds.")
    user: UserBrief
    must_change_password: bool = Field(description="True: only /api/me, /api/me/password and /api/logout work.")


class User(BaseModel):
    """An account."""

    id: UUID
    username: str
    email: str | None
    roles: list[Role]
    active: bool = Field(description="False: it cannot log in.")
    must_change_password: bool
    last_login: datetime | None
    created_at: datetime
    updated_at: datetime
    version: int = Field(description="Also the ETag.")


class CsrfAnswer(BaseModel):
    """What a page sends as X-CSRF-Token with every change when it is logged in by cookie."""

    csrf_token: str


def _user(account: Account) -> User:
    return User(
        id=UUID(account.id),
        username=account.username,
        email=account.email,
        roles=list(account.roles),  # type: ignore[arg-type]
        active=account.is_active,
        must_change_password=account.must_change_password,
        last_login=account.last_login,
        created_at=account.created_at,
        updated_at=account.updated_at,
        version=account.version,
    )


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _logged_in(login: Login, rt: Runtime, response: Response) -> LoginAnswer:
    http = rt.settings.http
    response.set_cookie(
        COOKIE,
        login.token,
        max_age=login.expires_in,
        httponly=True,
        samesite="lax",
        # Without TLS a browser would never send a Secure cookie back.
        secure=http.public_url.startswith("https:") or bool(http.tls_cert),
    )
    response.headers["Cache-Control"] = "no-store"
    account = login.account
    brief = UserBrief(id=UUID(account.id), username=account.username, roles=list(account.roles))  # type: ignore[arg-type]
    return LoginAnswer(
        access_token=login.token,
        expires_in=login.expires_in,
        user=brief,
        must_change_password=account.must_change_password,
    )


@api.post("/api/login")
def log_in(body: LoginRequest, request: Request, response: Response, rt: Rt) -> LoginAnswer:
    """Log in: 401 INVALID_CREDENTIALS; 429 TOO_MANY_ATTEMPTS after 5 failures in 15 minutes."""
    return _logged_in(sessions.log_in(rt, body.username, body.password, _address(request)), rt, response)


@api.post("/api/logout", status_code=204)
def log_out(caller: Caller, rt: Rt, response: Response) -> None:
    """End the session in every room."""
    sessions.log_out(rt, caller)
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")


@api.get("/api/me")
def who_am_i(caller: Caller, rt: Rt, response: Response) -> User:
    """Tell the caller's own account."""
    account = sessions.who(rt, caller)
    response.headers["ETag"] = etag(account.version)
    return _user(account)


@api.post("/api/me/password")
def change_password(body: PasswordRequest, caller: Caller, rt: Rt, request: Request, response: Response) -> LoginAnswer:
    """Change one's own password: ends all one's sessions and answers with a new one."""
    login = sessions.change_password(rt, caller, body.current_password, body.new_password, _address(request))
    return _logged_in(login, rt, response)


@api.get("/api/csrf")
def read_csrf(caller: Caller, response: Response) -> CsrfAnswer:
    """Tell the token that changes by cookie must carry."""
    response.headers["Cache-Control"] = "no-store"
    return CsrfAnswer(csrf_token=caller.csrf)


@api.get("/api/users")
def list_users(caller: Caller, rt: Rt, limit: Limit = 100, cursor: Cursor = None) -> Page[User]:
    """List the accounts by name; admins only."""
    caller.require("admin")
    after = decode_cursor(cursor, str)
    found = flow.page(rt, after[0] if after else "", limit + 1)
    items = [_user(account) for account in found[:limit]]
    return Page(items=items, next_cursor=encode_cursor(flow.key(found[limit - 1])) if len(found) > limit else None)


@api.post("/api/users", status_code=201)
def create_user(body: NewUser, caller: Caller, rt: Rt, response: Response) -> User:
    """Make an account; admins only. 409 USERNAME_TAKEN."""
    caller.require("admin")
    account = flow.create(
        rt,
        flow.actor(caller),
        username=body.username,
        password=body.password,
        roles=body.roles,
        email=body.email,
        must_change_password=body.must_change_password,
    )
    response.headers["ETag"] = etag(account.version)
    response.headers["Location"] = f"/api/users/{account.id}"
    return _user(account)


@api.get("/api/users/{user_id}")
def read_user(user_id: UUID, caller: Caller, rt: Rt, response: Response) -> User:
    """Read an account; admins only."""
    caller.require("admin")
    account = flow.read(rt, str(user_id))
    response.headers["ETag"] = etag(account.version)
    return _user(account)


@api.patch("/api/users/{user_id}")
def change_user(
    user_id: UUID, body: UserPatch, caller: Caller, rt: Rt, response: Response, if_match: IfMatch = None
) -> User:
    """Change an account; admins only. New roles, a new password or closing it end its sessions everywhere.

    If-Match is honoured when it is sent (412). 409 LAST_ADMIN for the last admin who can log in,
    409 OWN_ACCOUNT for an admin who closes the own account or ends the own role.
    """
    caller.require("admin")

    def approve(current: Account) -> None:
        if if_match is not None:
            require_match(if_match, current.version, _user(current).model_dump(mode="json"))

    account = flow.change(rt, flow.actor(caller), str(user_id), _change(body), approve)
    response.headers["ETag"] = etag(account.version)
    return _user(account)


def _change(body: UserPatch) -> flow.Change:
    given: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    return flow.Change(
        roles=given.get("roles"),
        is_active=given.get("active"),
        email=given.get("email"),
        clears_email="email" in given and given["email"] is None,
        password=given.get("password"),
        must_change_password=given.get("must_change_password"),
    )
