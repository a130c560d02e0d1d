"""`korrigo run ROOM|all [--part api|relay|sweeper]`: the long-lived process of rooms.

All parts live in one process by default (a pod, one room); embedded mode gives each part a process of its own, so
that one that dies takes no other with it.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from korrigo_kit.room import Process, Room
from korrigo_kit.settings import HttpSettings, Settings, SettingsError
from korrigo_kit.telemetry import endpoint, logs, samples, traces

log = logging.getLogger("korrigo.serve")

PARTS = ("api", "relay", "sweeper")
_STOP_SECONDS = 20


def run(
    rooms: Sequence[Room],
    settings: Settings,
    *,
    parts: Sequence[str] = PARTS,
    ready_file: Path | None = None,
    openapi_document: Mapping[str, Any] | None = None,
    beside_sweeper: Callable[[Process, threading.Event], None] | None = None,
) -> None:
    """Run these parts of these rooms until SIGTERM or SIGINT; touches `ready_file` once everything answers.

    `beside_sweeper` runs in a thread of whichever process has the sweeper, until the event is set.
    """
    name = rooms[0].name if len(rooms) == 1 else "-".join(parts)
    logs.configure(name, settings.log.level, settings.log.directory, settings.log.general_path)
    traces.configure(name, settings.otel)
    samples.tidy()
    process = Process.build(rooms, settings)
    stop = threading.Event()
    threads = _background(process, parts, stop)
    if beside_sweeper is not None and "sweeper" in parts:
        beside = threading.Thread(target=beside_sweeper, args=(process, stop), name="beside-sweeper", daemon=True)
        threads.append(beside)
    for thread in threads:
        thread.start()

    def ready() -> None:
        log.info("%s is ready", name)
        if ready_file is not None:
            ready_file.write_text(str(threading.get_native_id()))

    try:
        if "api" in parts:
            _serve_http(process, settings, ready, openapi_document)
        else:
            pulse = endpoint.Pulse()
            pulse.watch(threads)
            endpoint.serve(settings.http, pulse)
            pulse.is_ready.set()
            _wait(stop, ready)
    finally:
        stop.set()
        for thread in threads:
            thread.join(_STOP_SECONDS)
        process.close()


def _background(process: Process, parts: Sequence[str], stop: threading.Event) -> list[threading.Thread]:
    threads = []
    for runtime in process.runtimes.values():
        if "relay" in parts:
            from korrigo_kit.parts import Relay

            threads.append(threading.Thread(target=Relay(runtime, stop).run, name=f"relay-{runtime.name}"))
        if "sweeper" in parts:
            from korrigo_kit.parts import Sweeper

            threads.append(threading.Thread(target=Sweeper(runtime, stop).run, name=f"sweeper-{runtime.name}"))
    if "api" in parts:
        from korrigo_kit.telemetry.figures import Teller

        # One for all rooms of the process, because its numbers are: grading's table, which the summary reads first.
        chosen = process.runtimes.get("grading") or next(iter(process.runtimes.values()))
        service = "korrigo" if len(process.runtimes) > 1 else chosen.name
        threads.append(threading.Thread(target=Teller(chosen, service).run, args=(stop,), name="figures"))
    for thread in threads:
        thread.daemon = True
    return threads


def _wait(stop: threading.Event, ready: Callable[[], None]) -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    ready()
    while not stop.wait(3600):
        pass


def _serve_http(
    process: Process, settings: Settings, ready: Callable[[], None], document: Mapping[str, Any] | None
) -> None:
    import uvicorn

    from korrigo_kit.rest.app import create_app
    from korrigo_kit.rpc import RpcServer

    http = settings.http
    _check_exposure(http)
    app = create_app(process.runtimes, settings, openapi_document=document)
    servers = [
        RpcServer(runtime.name, settings.rpc, runtime.db, runtime.room.servicers(runtime))
        for runtime in process.runtimes.values()
    ]
    for server in servers:
        server.start()
    config = uvicorn.Config(
        app,
        host=http.host,
        port=http.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(http.trusted_proxies),
        forwarded_allow_ips=http.trusted_proxies or None,
        ssl_certfile=http.tls_cert,
        ssl_keyfile=http.tls_key,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=64 * 1024,
    )
    # uvicorn raises a signal again once it has stopped for it; our own end (gRPC, threads) must still come after.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    try:
        _Server(config, ready, http.threads).run(sockets=[_listen(http)])
    finally:
        for server in servers:
            server.stop()


def _listen(http: HttpSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((http.host, http.port))
    except OSError as error:
        raise SettingsError(f"cannot listen on {http.host}:{http.port}: {error.strerror}") from None
    listener.listen(512)
    return listener


def _check_exposure(http: HttpSettings) -> None:
    # Passwords must not cross a network in the clear because somebody typed 0.0.0.0 (decisions.md, HTTP).
    if http.host in ("127.0.0.1", "localhost", "::1"):
        return
    if not (http.tls_cert and http.tls_key) and not http.trusted_proxies:
        raise SettingsError("an address beyond loopback needs KORRIGO_HTTP__TLS_CERT and TLS_KEY, or TRUSTED_PROXIES")


def _server_class() -> type[Any]:
    import uvicorn

    class Server(uvicorn.Server):
        def __init__(self, config: uvicorn.Config, ready: Callable[[], None], threads: int) -> None:
            super().__init__(config)
            self._ready = ready
            self._threads = threads

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            from anyio import to_thread

            to_thread.current_default_thread_limiter().total_tokens = self._threads
            await super().startup(sockets=sockets)
            if self.started:
                self._ready()

    return Server


def _Server(config: Any, ready: Callable[[], None], threads: int) -> Any:  # noqa: N802 - makes the class lazily
    return _server_class()(config, ready, threads)
