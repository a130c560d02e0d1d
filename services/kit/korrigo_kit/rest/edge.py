"""The outermost layer of every app: one pure ASGI middleware around each request.

Trailing slashes, HEAD as GET, the Host allow-list, the body limit, request id and trace, security headers, the
access log and the HTTP metrics live here, because each of them must also hold for requests that no route takes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from korrigo_kit import context
from korrigo_kit.errors import Invalid, KorrigoError, TooLarge
from korrigo_kit.rest import problems
from korrigo_kit.telemetry import metrics, traces
from korrigo_kit.telemetry.logs import Stopwatch

log = logging.getLogger("korrigo.rest")

# Bodies other than uploads are small (reliability.md 9).
MAX_JSON_BYTES = 1 << 20
# Key of the scope under which an endpoint finds how to allow itself a larger body (kit.rest.upload).
ALLOW_BODY = "korrigo.allow_body"
SLOW_SECONDS = 5.0
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_QUIET_PATHS = ("/metrics", "/api/health", "/api/health/live", "/api/health/ready")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; object-src 'none'",
}


class Edge:
    """Wraps the app; `hosts` is the Host allow-list, None = any (behind a proxy that checks)."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, service: str) -> None:
        self._app = app
        self._hosts = hosts
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A copy: the server keeps its own, by which it knows that a HEAD answer has no body.
        scope = {**scope}
        headers = Headers(scope=scope)
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/") or "/"
        exchange = _Exchange(scope, receive, send)
        with context.bind(
            request_id=context.accept_request_id(headers.get("x-request-id")),
            traceparent=traces.accept(headers.get("traceparent")),
            service=self._service,
        ):
            with traces.span(f"{exchange.method} {scope['path'].strip('/').partition('/')[0]}"):
                await self._answer(scope, exchange, headers)
            exchange.record()

    async def _answer(self, scope: Scope, exchange: _Exchange, headers: Headers) -> None:
        try:
            self._check_host(headers)
            exchange.limit_body(headers)
            await self._app(scope, exchange.receive, exchange.send)
        except KorrigoError as error:
            await exchange.refuse(scope, problems.problem(error))
        except Exception as error:  # the last line of defence of the HTTP wire
            await exchange.refuse(scope, problems.on_bug(error))

    def _check_host(self, headers: Headers) -> None:
        if self._hosts is None:
            return
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if host.rsplit(":", 1)[-1].isdigit() else host
        if name.lower() not in self._hosts:
            raise Invalid("HOST_NOT_ALLOWED", "this server does not answer under that name", status=421)


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._watch = Stopwatch()
        self._status = 0
        self._left = MAX_JSON_BYTES
        self.method: str = scope["method"]
        if self.method == "HEAD":
            scope["method"] = "GET"
        scope[ALLOW_BODY] = self._allow_body

    def limit_body(self, headers: Headers) -> None:
        # Whether an endpoint takes a file is known when it asks for it: `_allow_body`.
        if headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return
        if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > MAX_JSON_BYTES:
            raise TooLarge("BODY_TOO_LARGE", "the body is too large", max_bytes=MAX_JSON_BYTES)

    def _allow_body(self, max_bytes: int) -> None:
        self._left = max_bytes + MAX_JSON_BYTES

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                # The only kind of error that FastAPI lets through while it reads a body.
                raise HTTPException(413, "the body is too large")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["X-Request-ID"] = context.request_id()
            for key, value in _HEADERS.items():
                headers.setdefault(key, value)
        await self._send(message)

    async def refuse(self, scope: Scope, response: ASGIApp) -> None:
        if self._status == 0:
            await response(scope, self._receive, self.send)

    def record(self) -> None:
        route = self._scope.get("route")
        path = getattr(route, "path", None) or ("/metrics" if self._scope["path"] == "/metrics" else "unmatched")
        status = str(self._status or 499)
        seconds = self._watch.seconds
        metrics.observe_request(self.method, path, int(status), seconds)
        principal = self._scope.get("korrigo.principal")
        fields = {
            "method": self.method,
            "path": path,
            "status_code": int(status),
            "duration_ms": int(seconds * 1000),
            "user_id": principal.user_id if principal else None,
        }
        if seconds > SLOW_SECONDS and not path.endswith("/events"):
            logging.getLogger("metrics").warning(
                "Slow request detected: %s %s took %.2fs (status %s)", self.method, path, seconds, status, extra=fields
            )
        quiet = path in _QUIET_PATHS and self._status < 400
        log.log(logging.DEBUG if quiet else logging.INFO, "%s %s %s", self.method, path, status, extra=fields)
