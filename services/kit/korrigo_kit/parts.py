"""The parts of `korrigo run ROOM` that no request drives: the relay and the sweeper, one thread per room.

The relay tells events and rings bells as soon as they are written; the sweeper takes back what was lost. Several
replicas may run both: rows are taken under SKIP LOCKED.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import orjson
import psycopg

from korrigo_kit import context, jobs, outbox
from korrigo_kit.broker import EventPublisher
from korrigo_kit.errors import KorrigoError
from korrigo_kit.ring import Bells
from korrigo_kit.room import Periodic, Runtime

log = logging.getLogger("korrigo.parts")

# NOTIFY wakes the relay; this poll is the truth.
POLL_SECONDS = 1.0
_RETRY_SECONDS = 2.0
# Heartbeat of a sweep that healed what it found; the metric of the same meaning reads it.
SWEPT = "swept"
# Periodic work that is due more often belongs to healing; the rest is tidying, which may wait.
_HEALING_SECONDS = 60


def beat(runtime: Runtime, name: str, **facts: object) -> None:
    """Note that a part of this room works."""
    with runtime.db.transaction() as tx:
        tx.run(
            "INSERT INTO heartbeats (name, beat_at, facts) VALUES (%s, clock_timestamp(), %s)"
            " ON CONFLICT (name) DO UPDATE SET beat_at = excluded.beat_at, facts = excluded.facts",
            (name, orjson.dumps(facts).decode()),
        )


class Relay:
    """Publishes the outbox of one room and rings for its jobs."""

    def __init__(self, runtime: Runtime, stop: threading.Event) -> None:
        self._runtime = runtime
        self._stop = stop
        self._publisher = EventPublisher(runtime.settings)
        self._bells = Bells(runtime.settings, runtime.name)
        self.is_ready = threading.Event()

    def run(self) -> None:
        """Work until told to stop; a part that is away is waited for."""
        while not self._stop.is_set():
            try:
                with self._runtime.db.connect() as listener:
                    listener.autocommit = True
                    listener.execute(f"LISTEN korrigo_{self._runtime.name}")
                    self._listen(listener)
            except (KorrigoError, psycopg.Error) as error:
                log.warning("relay waits: %s", getattr(error, "reason", type(error).__name__))
                self._stop.wait(_RETRY_SECONDS)
            except Exception:
                log.exception("relay failed")
                self._stop.wait(_RETRY_SECONDS)

    def _listen(self, listener: psycopg.Connection[object]) -> None:
        last_beat = 0.0
        while not self._stop.is_set():
            while self.publish() and not self._stop.is_set():
                pass
            self.ring()
            if time.monotonic() - last_beat > 5:
                beat(self._runtime, "relay")
                last_beat = time.monotonic()
            self.is_ready.set()
            for _ in listener.notifies(timeout=POLL_SECONDS, stop_after=1):
                pass

    def publish(self) -> int:
        """Publish one batch of events; returns how many."""
        with self._runtime.db.transaction() as tx:
            events = outbox.lock_unsent(tx)
            if events:
                self._publisher.publish(events)
                outbox.mark_sent(tx, [event.id for event in events])
        return len(events)

    def ring(self) -> int:
        """Ring for jobs that became due; returns how many."""
        return ring_due(self._runtime, self._bells, is_sweep=False)


def ring_due(runtime: Runtime, bells: Bells, *, is_sweep: bool) -> int:
    """Ring for due jobs; what the broker does not take is rung again later."""
    due = [job_id for job_id, _ in jobs.due_bells(runtime.db, is_sweep=is_sweep)]
    try:
        bells.ring(due)
    except KorrigoError:
        jobs.unring(runtime.db, due)
        raise
    return len(due)


class Sweeper:
    """Takes back lost leases, rings again, and does the room's periodic work."""

    def __init__(self, runtime: Runtime, stop: threading.Event) -> None:
        self._runtime = runtime
        self._stop = stop
        self._bells = Bells(runtime.settings, runtime.name)
        self._limits = jobs.Limits.of(runtime.settings.jobs)
        self._reactions = {kind: task.on_failed for kind, task in runtime.room.tasks(runtime).items()}
        self._periodic = [*runtime.room.periodic(runtime), *_housekeeping()]
        self._done_at: dict[str, float] = {}
        self.is_ready = threading.Event()

    def run(self) -> None:
        """Sweep until told to stop."""
        while not self._stop.is_set():
            with context.bind(request_id=context.accept_request_id(None), service=self._runtime.name):
                self.sweep()
            self.is_ready.set()
            self._stop.wait(min([self._runtime.settings.jobs.sweep_seconds, *self._intervals()]))

    def _intervals(self) -> list[float]:
        return [periodic.interval_seconds for periodic in self._periodic]

    def sweep(self) -> None:
        """Do everything that is due; one failing part does not stop the others."""
        has_healed = self._try("leases", self._take_back)
        for periodic in self._periodic:
            if time.monotonic() - self._done_at.get(periodic.name, -1e9) >= periodic.interval_seconds:
                is_done = self._try(periodic.name, lambda work=periodic: work.run(self._runtime))  # type: ignore[misc]
                has_healed = has_healed and (is_done or periodic.interval_seconds > _HEALING_SECONDS)
                self._done_at[periodic.name] = time.monotonic()
        # A broker that is away is told by its own metric, and rows are rung for once it is back.
        self._try("bells", lambda: ring_due(self._runtime, self._bells, is_sweep=True))
        self._try("beat", lambda: beat(self._runtime, "sweeper"))
        if has_healed:
            self._try("beat", lambda: beat(self._runtime, SWEPT))

    def _take_back(self) -> None:
        swept = jobs.sweep(self._runtime.db, self._limits, self._reactions)
        if swept.requeued or swept.quarantined:
            log.warning("took back %d lost jobs, quarantined %d", swept.requeued, swept.quarantined)

    def _try(self, name: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except KorrigoError as error:
            log.warning("sweep of %s waits: %s", name, error.reason, extra={"reason": error.reason})
        except Exception:
            log.exception("sweep of %s failed", name)
        else:
            return True
        return False


def _housekeeping() -> Sequence[Periodic]:
    def prune_outbox(runtime: Runtime) -> None:
        with runtime.db.transaction() as tx:
            outbox.prune(tx)

    def prune_sessions(runtime: Runtime) -> None:
        with runtime.db.transaction() as tx:
            tx.run("DELETE FROM revoked_sessions WHERE expires_at < clock_timestamp() - interval '1 hour'")

    def prune_keys(runtime: Runtime) -> None:
        with runtime.db.transaction() as tx:
            tx.run("DELETE FROM idempotency_keys WHERE created_at < clock_timestamp() - interval '24 hours'")

    def prune_heartbeats(runtime: Runtime) -> None:
        with runtime.db.transaction() as tx:
            tx.run(
                "DELETE FROM heartbeats WHERE (name LIKE 'worker:%%' OR name LIKE 'figures:%%')"
                " AND beat_at < clock_timestamp() - interval '1 day'"
            )

    return (
        Periodic("prune-heartbeats", 3600, prune_heartbeats),
        Periodic("prune-outbox", 300, prune_outbox),
        Periodic("prune-idempotency-keys", 600, prune_keys),
        Periodic("prune-revoked-sessions", 600, prune_sessions),
    )
