"""/metrics of a process that has no API: a worker, or a relay or sweeper of its own; and whether it is well.

Only what the process and its pool count: gauges of the database are told by the rooms' APIs. The same port answers
`/api/health/live` and `/api/health/ready` as a room's does, for whoever keeps the process alive.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client.registry import Collector

from korrigo_kit.settings import HttpSettings, SettingsError
from korrigo_kit.telemetry import gauges, metrics

# What `metrics.expose` writes.
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
# A turn of catching up waits for a peer or a database that is away, several times over; this is longer than all of it.
STILL_SECONDS = 300.0


class Pulse:
    """What a process knows of its own health: its threads, when each last came round, and whether it has begun."""

    def __init__(self, still_seconds: float = STILL_SECONDS) -> None:
        self._still_seconds = still_seconds
        self._threads: Mapping[str, threading.Thread] = {}
        self._came_round: dict[str, float] = {}
        self.is_ready = threading.Event()

    def watch(self, threads: Iterable[threading.Thread]) -> None:
        """Count these threads among what must live."""
        self._threads = {thread.name: thread for thread in threads}

    def came_round(self) -> None:
        """Note that the calling thread did a turn of its work; from then on it must go on doing so."""
        self._came_round[threading.current_thread().name] = time.monotonic()

    def complaints(self) -> list[str]:
        """List the threads that ended or stand still."""
        now = time.monotonic()
        ended = [f"{name} ended" for name, thread in self._threads.items() if not thread.is_alive()]
        still = [
            f"{name} stands still for {now - at:.0f} s"
            for name, at in list(self._came_round.items())
            if now - at > self._still_seconds
        ]
        return ended + still


class _Server(ThreadingMixIn, WSGIServer):
    # A scrape takes as long as the database, and a probe must not wait for it.
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library names it so
        """Say nothing: probes come every few seconds."""


def serve(http: HttpSettings, pulse: Pulse | None = None) -> None:
    """Serve on the metrics port in a thread; nothing when there is none. Raises SettingsError."""
    if not http.metrics_port:
        return
    app = _routes([metrics.CachedGauges(gauges.build)], pulse or Pulse())
    try:
        kind = _Server6 if ":" in http.host else _Server
        server = make_server(http.host, http.metrics_port, app, kind, _Quiet)
    except OSError as error:
        raise SettingsError(f"cannot listen on {http.host}:{http.metrics_port}: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _routes(own: Sequence[Collector], pulse: Pulse) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ.get("PATH_INFO", "").rstrip("/")
        if path not in ("/api/health/live", "/api/health/ready"):
            page = metrics.expose(own)
            start_response("200 OK", [("Content-Type", TEXT_FORMAT), ("Content-Length", str(len(page)))])
            return [page]
        complaints = pulse.complaints()
        if path.endswith("ready") and not pulse.is_ready.is_set():
            complaints.append("not begun yet")
        body = json.dumps({"status": "unavailable" if complaints else "alive", "complaints": complaints}).encode()
        status = "503 Service Unavailable" if complaints else "200 OK"
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return app
