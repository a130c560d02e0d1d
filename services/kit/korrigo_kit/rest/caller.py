"""Who calls an endpoint, and which room answers: the two dependencies of every route."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from korrigo_kit import context
from korrigo_kit.auth import Principal, RevokedSessions, Verifier
from korrigo_kit.errors import Forbidden, Unauthenticated
from korrigo_kit.switches import TOKENS_FROM, Switches

if TYPE_CHECKING:
    from korrigo_kit.room import Runtime

COOKIE = "korrigo_session"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# What an account that must change its password may still do (decisions.md, HTTP).
_BEFORE_PASSWORD_CHANGE = ("/api/me", "/api/me/password", "/api/logout", "/api/csrf")


class Authenticator:
    """Turns the Authorization header or the session cookie into a principal."""

    def __init__(
        self, verifier: Verifier, revoked: RevokedSessions, switches: Switches, origins: Collection[str] = ()
    ) -> None:
        self._verifier = verifier
        self._revoked = revoked
        self._switches = switches
        self._origins = origins

    def principal(self, request: Request) -> Principal:
        """Return the caller.

        Raises Unauthenticated, Forbidden (ORIGIN_NOT_ALLOWED, CSRF_TOKEN_INVALID, PASSWORD_CHANGE_REQUIRED) and, for
        a change, Unavailable (READ_ONLY).
        """
        header = request.headers.get("authorization", "")
        cookie = request.cookies.get(COOKIE)
        if header.lower().startswith("bearer "):
            principal = self._verifier.verify(header[7:].strip())
        elif cookie:
            principal = self._verifier.verify(cookie, is_cookie=True)
            self._require_csrf(request, principal)
        else:
            raise Unauthenticated("TOKEN_MISSING", "log in first")
        if principal.session_id in self._revoked or principal.issued_at < self._switches.value(TOKENS_FROM):
            raise Unauthenticated("SESSION_REVOKED", "the session has ended; log in again")
        if principal.must_change_password and request.url.path not in _BEFORE_PASSWORD_CHANGE:
            raise Forbidden("PASSWORD_CHANGE_REQUIRED", "change your password first")
        if request.method not in _SAFE_METHODS:
            self._switches.require_writable(request.url.path)
        return principal

    def _require_csrf(self, request: Request, principal: Principal) -> None:
        # Only a cookie is sent by a browser without its page's doing; a header cannot be forged across sites.
        if request.method in _SAFE_METHODS:
            return
        origin = request.headers.get("origin")
        # The Host has been checked by the edge, so that a page of it is one of ours.
        if origin is not None and origin not in self._origins and _host(origin) != request.headers.get("host"):
            raise Forbidden("ORIGIN_NOT_ALLOWED", "a page of another site may change nothing here")
        # As bytes, because a header may hold what is not ASCII.
        if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), principal.csrf.encode()):
            raise Forbidden("CSRF_TOKEN_INVALID", "the X-CSRF-Token header is missing or wrong")


def _host(origin: str) -> str:
    _, separator, host = origin.partition("://")
    return host if separator else ""


def authenticate(request: Request) -> Principal:
    """Return the caller of this request, and let logs and calls to peers know him."""
    authenticator: Authenticator = request.app.state.authenticator
    principal = authenticator.principal(request)
    context.add(user_id=principal.user_id, principal=principal)
    # Dependencies run in a context of their own; the access log reads the user from the scope.
    request.scope["korrigo.principal"] = principal
    return principal


Caller = Annotated[Principal, Depends(authenticate)]


def room_runtime(name: str) -> Callable[[Request], Runtime]:
    """Make the dependency by which a room's endpoints get their runtime."""

    def runtime(request: Request) -> Runtime:
        principal = request.scope.get("korrigo.principal")
        if principal is not None:
            context.add(user_id=principal.user_id, principal=principal)
        found: Runtime = request.app.state.runtimes[name]
        return found

    return runtime
