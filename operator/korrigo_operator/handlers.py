"""kopf: starts and stops the one sweep loop, answers the liveness probe, wakes the loop when a person wants something.

Nothing is decided here. Watch streams only make the operator quick: what they miss, the next sweep sees. No handler
needs a finalizer, so that a namespace with all four kinds deletes at once; no timer or daemon hangs on an object.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import kopf

from korrigo_kit import context
from korrigo_kit.errors import KorrigoError
from korrigo_operator import kinds, metrics
from korrigo_operator.asking import Rooms
from korrigo_operator.cluster import Access, Cluster
from korrigo_operator.election import Election
from korrigo_operator.sweeping import interventions, objects
from korrigo_operator.sweeping.sweep import Sweeper

log = logging.getLogger("korrigo.operator")

# Silence that no sweep explains: acts of a minute, rooms and an API server that answer slowly.
SILENT_SECONDS = 150.0
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 15.0
# Changes that come together are one reason to look.
_SETTLE_SECONDS = 0.2


class Loop:
    """The sweep loop in a thread of its own: everything in it is synchronous, and kopf's own loop stays free."""

    def __init__(self, cluster: Cluster, rooms: Rooms, election: Election, runbooks: str, state: metrics.State) -> None:
        self._cluster = cluster
        self._rooms = rooms
        self._election = election
        self._sweeper = Sweeper(cluster, rooms, state, runbooks)
        self._state = state
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._beat = time.monotonic()
        self._interval = 30.0
        self._due = 0.0
        self._was_woken = False
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Sweep now."""
        self._wake.set()

    def stop(self) -> None:
        """End after the step that is being done, and let another operator begin at once."""
        self._stop.set()
        self._wake.set()
        self._thread.join(10)
        if not self._thread.is_alive():
            try:
                self._election.give_up()
            except KorrigoError as error:
                log.info("the lease runs out by itself: %s", error.reason)
        self._rooms.close()
        self._cluster.close()

    def silence(self) -> float:
        """Tell for how many seconds nothing was heard of the loop, beyond the time between two sweeps."""
        return time.monotonic() - self._beat - 3 * self._interval

    def _run(self) -> None:
        retry = _FIRST_RETRY_SECONDS
        while not self._stop.is_set():
            try:
                pause = self._once()
                retry = _FIRST_RETRY_SECONDS
            except KorrigoError as error:
                log.warning("sweep failed: %s (%s)", error.message, error.reason, extra={"reason": error.reason})
                pause, retry = retry, min(_LONGEST_RETRY_SECONDS, 2 * retry)
            except Exception:  # whatever it is, the next sweep begins from what is there
                log.exception("sweep failed")
                pause, retry = retry, min(_LONGEST_RETRY_SECONDS, 2 * retry)
            self._beat = time.monotonic()
            if self._wake.wait(pause):
                self._stop.wait(_SETTLE_SECONDS)
                self._wake.clear()
                self._was_woken = True

    def _once(self) -> float:
        """Sweep when that is due or somebody woke us, else only keep the lease."""
        self._state.is_leading = self._is_leading()
        if not self._state.is_leading:
            self._due = 0.0
            return _LONGEST_RETRY_SECONDS / 3
        if self._was_woken or time.monotonic() >= self._due:
            self._was_woken = False
            with context.bind(service="operator", request_id=context.accept_request_id(None)):
                self._interval = self._sweeper.sweep(self._is_leading)
            self._due = time.monotonic() + self._interval
        return max(0.0, min(self._due - time.monotonic(), self._election.renew_seconds))

    def _is_leading(self) -> bool:
        self._beat = time.monotonic()
        return not self._stop.is_set() and self._election.hold()


def registry(loop: Loop) -> kopf.OperatorRegistry:
    """Build the handlers around a loop."""
    made = kopf.OperatorRegistry()

    @kopf.on.startup(registry=made)
    def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _tune(settings)
        loop.start()

    @kopf.on.cleanup(registry=made)
    async def end(**_: Any) -> None:
        await asyncio.to_thread(loop.stop)

    @kopf.on.probe(id="sweep", registry=made)
    def alive(**_: Any) -> float:
        silence = loop.silence()
        if silence > SILENT_SECONDS:
            raise kopf.PermanentError(f"the sweep has been silent for {silence:.0f} s")
        return round(max(0.0, silence), 1)

    @kopf.on.event(kinds.GROUP, kinds.VERSION, "stuckcopies", registry=made)
    @kopf.on.event(kinds.GROUP, kinds.VERSION, "interventions", registry=made)
    @kopf.on.event(kinds.GROUP, kinds.VERSION, "gradingpolicies", registry=made)
    def changed(body: kopf.Body, **_: Any) -> None:
        if _is_wish(dict(body)):
            loop.wake()

    return made


def _is_wish(body: dict[str, Any]) -> bool:
    """Tell whether somebody wants something done: our own writes must not wake us for ever."""
    given = objects.annotations_of(body)
    if body.get("kind") == "StuckCopy":
        return interventions.ACTION in given
    phase = (body.get("status") or {}).get("phase", "Pending")
    if body.get("kind") == "Intervention":
        is_new = phase == "Pending" and given.get(objects.PAUSE) != objects.PAUSED
        return is_new or (phase == "AwaitingApproval" and interventions.APPROVED_BY in given)
    generation = body["metadata"].get("generation", 0)
    seen = {found.get("observedGeneration") for found in (body.get("status") or {}).get("conditions", ())}
    return generation not in seen


def _tune(settings: kopf.OperatorSettings) -> None:
    # Each measured: streams go deaf without time-outs, and a limit of workers throttles to a crawl.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 360
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1
    settings.queueing.worker_limit = None
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.persistence.finalizer = f"{kinds.GROUP}/operator"
    settings.persistence.progress_storage = kopf.StatusProgressStorage(field="status.kopf")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=kinds.GROUP)


def login(access: Access) -> kopf.ConnectionInfo:
    """Return the access as kopf takes it."""
    import base64

    certificate = str(access.certificate) if access.certificate else None
    return kopf.ConnectionInfo(
        server=access.url,
        ca_data=base64.b64encode(access.authority.encode()).decode() if access.authority else None,
        certificate_path=certificate,
        private_key_path=certificate,
        token=access.token.read_text().strip() if access.token else None,
        default_namespace=access.namespace,
    )


def run(loop: Loop, access: Access, liveness: str | None) -> None:
    """Run until SIGTERM or SIGINT."""
    made = registry(loop)

    @kopf.on.login(registry=made)
    def let_in(**_: Any) -> kopf.ConnectionInfo:
        return login(access)

    kopf.run(registry=made, standalone=True, namespaces=[access.namespace], liveness_endpoint=liveness)
