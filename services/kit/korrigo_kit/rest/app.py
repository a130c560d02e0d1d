"""The app factory: one FastAPI app for whichever rooms a process serves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from korrigo_kit.addresses import in_url
from korrigo_kit.auth import RevokedSessions, Verifier
from korrigo_kit.errors import KorrigoError
from korrigo_kit.rest import edge, problems
from korrigo_kit.rest.caller import Authenticator
from korrigo_kit.room import Runtime
from korrigo_kit.settings import HttpSettings, Settings
from korrigo_kit.switches import Switches
from korrigo_kit.telemetry import metrics

TITLE = "Korrigo"
VERSION = "1"
ROOMS = ("ingest", "grading", "render", "audit")


def create_app(
    runtimes: Mapping[str, Runtime], settings: Settings, *, openapi_document: Mapping[str, Any] | None = None
) -> FastAPI:
    """Build the app of these rooms; `openapi_document` replaces the generated one (the merged one, in production)."""
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems.responses(),
    )
    app.state.runtimes = dict(runtimes)
    first = next(iter(runtimes.values()))
    app.state.authenticator = Authenticator(
        Verifier(settings.auth),
        RevokedSessions([runtime.db for runtime in runtimes.values()]),
        Switches(first.db),
        _allowed_origins(settings.http),
    )
    problems.install(app)
    for runtime in runtimes.values():
        for router in runtime.room.routers(runtime):
            app.include_router(router)
    _add_health(app, runtimes, settings)
    _add_metrics(app, runtimes, settings)
    _add_docs(app, openapi_document)
    metrics.expect_requests(_operations(app.routes))
    service = first.name if len(runtimes) == 1 else "api"
    app.add_middleware(edge.Edge, hosts=_allowed_hosts(settings.http), service=service)
    return app


def _operations(routes: Sequence[BaseRoute]) -> list[tuple[str, str, int]]:
    """List method, path template and status of success of every route, included routers' too."""
    found = []
    for route in routes:
        if isinstance(route, APIRoute):
            found += [(method, route.path, route.status_code or 200) for method in route.methods or ()]
        else:
            included = getattr(route, "original_router", None)
            found += _operations(included.routes) if included is not None else []
    return found


def _allowed_hosts(http: HttpSettings) -> set[str] | None:
    named = {name.strip().lower() for name in http.allowed_hosts.split(",") if name.strip()}
    if http.public_url:
        named.add(in_url(urlsplit(http.public_url).hostname or ""))
    if http.host in ("127.0.0.1", "localhost", "::1"):
        return {*edge.LOOPBACK_HOSTS, *named}
    return {*edge.LOOPBACK_HOSTS, in_url(http.host), *named} if named else None


def _allowed_origins(http: HttpSettings) -> set[str]:
    named = {name.strip().rstrip("/") for name in http.allowed_origins.split(",") if name.strip()}
    if http.public_url:
        parts = urlsplit(http.public_url)
        named.add(f"{parts.scheme}://{parts.netloc}")
    return named


def _add_health(app: FastAPI, runtimes: Mapping[str, Runtime], settings: Settings) -> None:
    # Only database and schema make a room unready; everything else is told and stays 200 (decisions.md, Running).
    def checks() -> tuple[bool, dict[str, Any]]:
        is_ready = True
        found: dict[str, Any] = {}
        for name, runtime in runtimes.items():
            is_up = runtime.db.is_reachable()
            is_ready = is_ready and is_up
            found[name] = {"database": "ok" if is_up else "unavailable"}
        peers = [room for room in ROOMS if room not in runtimes and getattr(settings.rpc, room)]
        for peer in peers:
            channels = next(iter(runtimes.values())).channels
            found[peer] = {"peer": "ok" if channels.is_serving(peer) else "unavailable"}
        return is_ready, found

    def health() -> Response:
        """Tell whether the product works, part by part."""
        is_ready, found = checks()
        degraded = any(value != "ok" for part in found.values() for value in part.values())
        status = "unavailable" if not is_ready else "degraded" if degraded else "healthy"
        return JSONResponse({"status": status, "checks": found}, 200 if is_ready else 503)

    def live() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "alive"}

    app.add_api_route("/api/health", health, tags=["health"], response_model=None)
    app.add_api_route("/api/health/ready", health, tags=["health"], response_model=None)
    app.add_api_route("/api/health/live", live, tags=["health"])


def _add_metrics(app: FastAPI, runtimes: Mapping[str, Runtime], settings: Settings) -> None:
    from korrigo_kit.telemetry import gauges

    collectors = gauges.collectors(runtimes, settings.http.metrics_cache_seconds)

    def expose(request: Request) -> Response:
        # Prometheus comes straight; what a gateway brings is the world, which has no business with these.
        if "x-forwarded-for" in request.headers:
            raise HTTPException(404)
        return Response(metrics.expose(collectors), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_api_route("/metrics", expose, include_in_schema=False)


def _add_docs(app: FastAPI, document: Mapping[str, Any] | None) -> None:
    def openapi() -> Response:
        return JSONResponse(document if document is not None else app.openapi())

    def docs() -> Response:
        return HTMLResponse(_docs_page(document if document is not None else app.openapi()))

    def root() -> Response:
        return HTMLResponse(
            "<!doctype html><html lang=en><title>Korrigo</title><h1>Korrigo</h1>"
            "<p>The product answers. <a href=/api/docs>Its API</a>, <a href=/api/health>its health</a>.</p></html>"
        )

    app.add_api_route("/api/openapi.json", openapi, include_in_schema=False)
    app.add_api_route("/api/docs", docs, include_in_schema=False)
    app.add_api_route("/", root, include_in_schema=False)


def _docs_page(document: Mapping[str, Any]) -> str:
    """List every operation in plain HTML: no script, nothing from elsewhere."""
    rows = []
    for path, operations in sorted(document["paths"].items()):
        for method, operation in operations.items():
            text = operation.get("description") or operation.get("summary", "")
            rows.append(
                f"<tr><td><code>{method.upper()}</code><td><code>{html.escape(path)}</code><td>{html.escape(text)}"
            )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Korrigo API</title><h1>Korrigo API</h1>"
        "<p>The whole description: <a href=/api/openapi.json>/api/openapi.json</a> (OpenAPI 3.1).</p>"
        f"<table>{''.join(rows)}</table></html>"
    )


def problem_of(error: KorrigoError) -> Response:
    """Write an error as a response, for code outside the request cycle."""
    return problems.problem(error)


def describe(routers: Sequence[Any]) -> dict[str, Any]:
    """Generate the OpenAPI document of these routers, without a runtime; the front door merges all rooms with it."""
    app = FastAPI(title=TITLE, version=VERSION, responses=problems.responses())
    for router in routers:
        app.include_router(router)
    _add_health(app, {}, Settings({}, {}))
    return app.openapi()
