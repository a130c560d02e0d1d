"""The sweep itself, in its order: what is stuck, what is asked for, what is done, what alerts tell, what it came to."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from korrigo_kit.clock import Clock, utc_now
from korrigo_kit.errors import KorrigoError
from korrigo_operator import metrics
from korrigo_operator.asking import Rooms, Seen
from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.policies.facts import AUTO, Limits
from korrigo_operator.sweeping import incidents, interventions, objects, policy, stuck_copies

log = logging.getLogger("korrigo.operator")

# Counting a long trail is work for its room: not with every sweep.
COUNT_SECONDS = 300.0
# Longer than any installer takes between taking a policy away and putting another there.
ALONE_SECONDS = 60.0


class Sweeper:
    """Does sweeps; what it keeps between them only saves work."""

    def __init__(
        self, cluster: Cluster, rooms: Rooms, state: metrics.State, runbooks: str, *, clock: Clock = utc_now
    ) -> None:
        self._cluster = cluster
        self._rooms = rooms
        self._state = state
        self._runbooks = runbooks
        self._clock = clock
        self._missing: int | None = None
        self._counted = -1e9
        self._missing_since: float | None = None
        self._last_policy: Document = {}

    def sweep(self, is_leading: Callable[[], bool]) -> float:
        """Do one sweep; returns the seconds until the next is due. Raises Unavailable without the API server."""
        began = time.monotonic()
        result = "failed"
        try:
            item = self._policy()
            is_whole = self._round(item, policy.limits_of(self._last_policy), is_leading)
            result = "complete" if is_whole else "partial"
            return policy.interval_seconds(self._last_policy)
        finally:
            metrics.sweeps.labels(result).observe(time.monotonic() - began)

    def _policy(self) -> Document | None:
        """Return the policy; one that is missing counts as it was last seen (else as all defaults), and is made later.

        Not at once: an installer that deletes it to make it anew would find ours in its way. And not as the defaults
        meanwhile: what a person paused must not act in between.
        """
        found = policy.read(self._cluster)
        if found is not None:
            self._missing_since = None
            self._last_policy = found
            return found
        now = time.monotonic()
        self._missing_since = self._missing_since or now
        if now - self._missing_since <= ALONE_SECONDS:
            return None
        self._last_policy = {}
        return policy.make(self._cluster)

    def _round(self, item: Document | None, limits: Limits, is_leading: Callable[[], bool]) -> bool:
        now = self._clock()
        seen = self._rooms.look()
        stuck = stuck_copies.reconcile(self._cluster, seen, limits, now, self._runbooks)
        failed = stuck.failed
        if not limits.is_paused:
            wanted = [found for found in stuck.items.values() if interventions.ACTION in objects.annotations_of(found)]
            wanted = [found for found in wanted if not objects.is_paused(found)]
            failed += objects.each(wanted, "StuckCopy", lambda found: interventions.annotated(self._cluster, found))
            interventions.automatic(self._cluster, stuck)
        missing = self._count(seen)
        if missing and limits.mode == AUTO and "VerifyAudit" in limits.actions and not limits.is_paused:
            reason = f"automatic: {missing} events are missing"
            interventions.scheduled(self._cluster, "VerifyAudit", now, reason)
        doer = interventions.Doer(self._cluster, self._rooms, now, is_leading)
        items = self._cluster.list(interventions.PLURAL)
        failed += doer.reconcile(items, stuck.items, is_paused=limits.is_paused)
        failed += self._incidents(seen)
        is_open = policy.is_circuit_open(seen.found, limits, seen, now)
        if item is not None:
            policy.tell(self._cluster, item, limits, seen, missing, now, is_open=is_open)
        phases = Counter((one.get("status") or {}).get("phase", "Open") for one in stuck.items.values())
        self._state.swept(phases, is_circuit_open=is_open)
        return not failed and not seen.silent

    def _count(self, seen: Seen) -> int | None:
        if "audit" in seen.silent:
            return None
        if time.monotonic() - self._counted > COUNT_SECONDS:
            try:
                self._missing = self._rooms.missing_events()
            except KorrigoError as error:
                log.warning("the trail was not counted: %s", error.reason, extra={"reason": error.reason})
                self._missing = None
            # Missing events are looked at with every sweep until there are none.
            self._counted = -1e9 if self._missing else time.monotonic()
        return self._missing

    def _incidents(self, seen: Seen) -> int:
        if "grading" in seen.silent:
            return 0
        try:
            found = self._cluster.list(incidents.PLURAL)
            episodes, unknown = self._rooms.alert_episodes(incidents.firing(found))
        except KorrigoError as error:
            log.warning("alerts were not read: %s", error.reason, extra={"reason": error.reason})
            return 1
        acts = self._cluster.list(interventions.PLURAL)
        told = incidents.Told(episodes, frozenset(unknown), acts, _impact(seen))
        return incidents.reconcile(self._cluster, found, told, self._clock())


def _impact(seen: Seen) -> str:
    copies = sum(seen.counts.values())
    if not copies:
        return ""
    parts = ", ".join(f"{number} × {stage} {reason}" for (stage, reason), number in sorted(seen.counts.items()))
    return f"{copies} copies bloquées ({parts}) ; aucune donnée perdue"[:500]
