"""`korrigo work ROOM|all`: jobs and events of rooms.

The parent consumes events (one thread), catches up with what the broker lost (one thread per room), watches that
work goes on (one thread), and is the Celery worker whose spawned children make the attempts. Rooms without tasks
have no pool.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import kombu
from kombu.mixins import ConsumerMixin

from korrigo_kit import broker, context, inbox
from korrigo_kit.errors import KorrigoError
from korrigo_kit.parts import beat
from korrigo_kit.ring import celery_app
from korrigo_kit.room import Process, Room, Runtime
from korrigo_kit.settings import Settings
from korrigo_kit.stuck import WORKER_PREFIX
from korrigo_kit.telemetry import endpoint, logs, samples, traces

log = logging.getLogger("korrigo.work")

CATCH_UP_SECONDS = 5.0
# Between two beats at least; a worker counts as dead after WORKER_SILENCE_SECONDS, several of these.
_SIGN_SECONDS = 2.5
_WATCH_SECONDS = 5.0
_EXIT_STALLED = 70


class EventConsumer(ConsumerMixin):  # type: ignore[misc]
    """Hears the events of these rooms; what it cannot apply is left to catching up."""

    def __init__(self, settings: Settings, runtimes: Sequence[Runtime]) -> None:
        self._settings = settings
        self.connection = broker.connection(settings)
        self._followed = [(runtime, runtime.room.subscriptions(runtime)) for runtime in runtimes]
        self.heard_at = time.monotonic()
        self.is_ready = threading.Event()

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        """Declare and consume one queue per room."""
        consumers = []
        for runtime, subscriptions in self._followed:
            keys = [key for subscription in subscriptions for key in subscription.routing_keys]
            if keys:
                consumers.append(
                    consumer(
                        queues=[broker.event_queue(runtime.name, keys)],
                        on_message=self._handler(runtime, subscriptions),
                        accept=["json"],
                        prefetch_count=20,
                    )
                )
        return consumers

    def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, **kwargs: Any) -> None:
        self.is_ready.set()

    def _handler(self, runtime: Runtime, subscriptions: Sequence[inbox.Subscription]) -> Any:
        by_source = {subscription.source: subscription for subscription in subscriptions}

        def on_message(message: kombu.Message) -> None:
            self.heard_at = time.monotonic()
            try:
                event = broker.decode(self._settings, message.payload)
            except Exception as error:
                # Not ours, or no event at all: dropped. Should it be ours after all, catching up brings it.
                log.error("a message was dropped: %s", error, extra={"reason": getattr(error, "reason", "NO_EVENT")})
                message.ack()
                return
            subscription = by_source.get(event.source)
            try:
                if subscription is not None:
                    with _room_context(runtime, event.request_id):
                        inbox.receive(runtime.db, subscription, event, runtime.channels)
                        log.info("event %s.%s applied", event.source, event.type)
            except KorrigoError as error:
                log.warning("event %s waits for catching up: %s", event.type, error.reason)
            except Exception:
                log.exception("event %s failed", event.type)
            message.ack()

        return on_message


def _room_context(runtime: Runtime, request_id: str) -> Any:
    return context.bind(service=runtime.name, request_id=request_id or None)


def catch_up_forever(
    runtime: Runtime, workers: Sequence[Runtime], stop: threading.Event, pulse: endpoint.Pulse
) -> None:
    """Ask every followed room, again and again, for what the broker did not bring."""
    subscriptions = runtime.room.subscriptions(runtime)
    name = f"{WORKER_PREFIX}{socket.gethostname()}:{os.getpid()}"
    told_at = 0.0

    def live() -> None:
        """Show that this worker lives, in the middle of a turn too: it is no dead one that has a lot to catch up."""
        nonlocal told_at
        pulse.came_round()
        if time.monotonic() - told_at < _SIGN_SECONDS:
            return
        told_at = time.monotonic()
        try:
            beat(runtime, name, **_occupation(workers))
        except KorrigoError:
            log.debug("no beat: the database is away")

    while not stop.is_set():
        for subscription in subscriptions:
            try:
                with _room_context(runtime, ""):
                    applied = inbox.catch_up(runtime.db, subscription, runtime.channels, live)
                if applied:
                    log.warning("caught up with %d events of %s", applied, subscription.source)
            except KorrigoError as error:
                log.debug("catching up with %s waits: %s", subscription.source, error.reason)
            except Exception:
                log.exception("catching up with %s failed", subscription.source)
        live()
        stop.wait(CATCH_UP_SECONDS)


def _occupation(runtimes: Sequence[Runtime]) -> dict[str, int]:
    """Count the pool's children and those at work, over all rooms that share the pool."""
    busy = 0
    for runtime in runtimes:
        with runtime.db.transaction() as tx:
            row = tx.row(
                "SELECT count(*) AS n FROM jobs WHERE state = 'RUNNING' AND lease_until > clock_timestamp()"
                " AND worker LIKE %s || ':%%'",
                (socket.gethostname(),),
            )
        busy += row["n"]
    return {"busy": busy, "pool": runtimes[0].settings.jobs.concurrency} if runtimes else {}


def watch_forever(runtimes: Sequence[Runtime], stop: threading.Event, pulse: endpoint.Pulse) -> None:
    """End this process when due work waits beside it and it claims nothing (reliability.md 1: silent stalls).

    Leaving is always safe, because the row is the job; the supervisor starts a new worker.
    """
    prefix = f"{socket.gethostname()}:"
    idle_since = time.monotonic()
    while not stop.wait(_WATCH_SECONDS):
        pulse.came_round()
        try:
            is_waiting = False
            for runtime in runtimes:
                limit = runtime.settings.jobs.stall_seconds
                is_waiting = is_waiting or _is_stalled(runtime, prefix, limit)
        except KorrigoError:
            is_waiting = False
        if not is_waiting:
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > runtimes[0].settings.jobs.stall_seconds:
            log.error("due work waits and nothing is claimed: ending this worker")
            logging.shutdown()
            os._exit(_EXIT_STALLED)


def _is_stalled(runtime: Runtime, prefix: str, limit_seconds: float) -> bool:
    with runtime.db.transaction() as tx:
        row = tx.row(
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'READY' AND rung_at IS NOT NULL"
            "   AND rung_at < clock_timestamp() - interval '3 seconds'"
            "   AND not_before < clock_timestamp() - make_interval(secs => %(limit)s))"
            " AND NOT EXISTS (SELECT 1 FROM jobs WHERE state = 'RUNNING' AND worker LIKE %(prefix)s || '%%')"
            " AS stalled",
            {"limit": limit_seconds, "prefix": prefix},
        )
    return bool(row["stalled"])


def work(rooms: Sequence[Room], settings: Settings, *, registry: str, ready_file: Path | None = None) -> None:
    """Run the worker of these rooms until SIGTERM or SIGINT.

    `registry` names the front door's module with `rooms(names)` and `load_settings()`, for the spawned children.
    """
    name = f"{rooms[0].name}-worker" if len(rooms) == 1 else "worker"
    logs.configure(name, settings.log.level, settings.log.directory, settings.log.general_path)
    if settings.log.audit_path and any(room.name == "audit" for room in rooms):
        logs.keep_audit(settings.log.audit_path, name)
    traces.configure(name, settings.otel)
    samples.tidy()
    pulse = endpoint.Pulse()
    endpoint.serve(settings.http, pulse)
    process = Process.build(rooms, settings)
    runtimes = list(process.runtimes.values())
    stop = threading.Event()
    consumer = EventConsumer(settings, runtimes)
    with_tasks = [runtime for runtime in runtimes if runtime.room.tasks(runtime)]
    threads = [
        threading.Thread(target=consumer.run, name="events", daemon=True),
        *(
            threading.Thread(
                target=catch_up_forever, args=(rt, with_tasks, stop, pulse), name=f"catch-up-{rt.name}", daemon=True
            )
            for rt in runtimes
        ),
    ]
    if with_tasks:
        watch = threading.Thread(target=watch_forever, args=(with_tasks, stop, pulse), name="watch", daemon=True)
        threads.append(watch)
    if settings.http.metrics_port:
        # Else this process's numbers are told by the one whose /metrics has them.
        from korrigo_kit.telemetry.figures import Teller

        threads.append(
            threading.Thread(target=Teller(runtimes[0], name).run, args=(stop,), name="figures", daemon=True)
        )
    for thread in threads:
        thread.start()
    pulse.watch(threads)

    def ready() -> None:
        log.info("%s ready", name)
        pulse.is_ready.set()
        if ready_file is not None:
            ready_file.write_text(str(os.getpid()))

    try:
        if with_tasks:
            _run_celery(with_tasks, settings, ready, registry)
        else:
            _wait(ready)
    finally:
        stop.set()
        consumer.should_stop = True
        process.close()


def _wait(ready: Any) -> None:
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    ready()
    while not stop.wait(3600):
        pass


def _run_celery(runtimes: Sequence[Runtime], settings: Settings, ready: Any, registry: str) -> None:
    from celery import signals
    from celery.exceptions import SecurityWarning

    names = [runtime.name for runtime in runtimes]
    app = celery_app(settings, names)
    # A spawned child is a fresh interpreter: it finds its rooms by this name, which only the front door can give.
    app.conf.update(include=["korrigo_kit.pool"], korrigo_registry=registry, korrigo_rooms=names)

    @signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def on_ready(**_: object) -> None:
        ready()

    # Celery warns of root because of pickle; this worker accepts JSON only, and PDF work drops its privileges.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(
        quiet=True,
        pool="prefork",
        concurrency=settings.jobs.concurrency,
        queues=[f"jobs.{name}" for name in names],
        loglevel="INFO",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()

