"""Who acts when several operators run: the holder of a Lease. For economy only; that nothing is done twice does not
depend on it (every act has a uid, and its room does it once).

A holder counts as silent when its lease was not renewed for the lease's length by *our* clock, so that clocks of
different nodes need not agree.
"""

from __future__ import annotations

import time
from typing import Any

from korrigo_kit.clock import rfc3339, utc_now
from korrigo_kit.errors import AlreadyExists, NotFound, StateConflict
from korrigo_operator.cluster import Cluster, Document

NAME = "korrigo-operator"


class Election:
    """One candidate. `hold` raises Unavailable when the API server does not answer: nobody acts then."""

    def __init__(self, cluster: Cluster, identity: str, seconds: float) -> None:
        self._cluster = cluster
        self._identity = identity
        self._seconds = seconds
        self._renewed = -1e9
        # What the lease of another looked like, and since when it has looked so.
        self._seen: tuple[Any, float] = (None, 0.0)

    @property
    def renew_seconds(self) -> float:
        """Tell how often `hold` has to be called."""
        return self._seconds / 3

    def hold(self) -> bool:
        """Take or renew the lease when that is due; tell whether it is ours."""
        if time.monotonic() - self._renewed < self.renew_seconds:
            return True
        try:
            lease = self._cluster.lease("GET", NAME)
        except NotFound:
            return self._write("POST", {"metadata": {"name": NAME}, "spec": {}})
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") not in (None, "", self._identity) and not self._is_silent(spec):
            return False
        return self._write("PUT", lease)

    def give_up(self) -> None:
        """Let another begin at once."""
        if self._renewed < 0:
            return
        lease = self._cluster.lease("GET", NAME)
        if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = ""
            self._put("PUT", lease)
        self._renewed = -1e9

    def _is_silent(self, spec: Document) -> bool:
        state = (spec.get("holderIdentity"), spec.get("renewTime"))
        if self._seen[0] != state:
            self._seen = (state, time.monotonic())
        length = max(self._seconds, float(spec.get("leaseDurationSeconds") or 0))
        return time.monotonic() - self._seen[1] > length

    def _write(self, method: str, lease: Document) -> bool:
        began = time.monotonic()
        spec = dict(lease.get("spec") or {})
        is_mine = spec.get("holderIdentity") == self._identity
        now = rfc3339(utc_now())
        spec.update(
            holderIdentity=self._identity,
            leaseDurationSeconds=max(1, round(self._seconds)),
            renewTime=now,
            acquireTime=spec.get("acquireTime", now) if is_mine else now,
            leaseTransitions=int(spec.get("leaseTransitions") or 0) + (0 if is_mine else 1),
        )
        if not self._put(method, {**lease, "spec": spec}):
            return False
        self._renewed = began
        return True

    def _put(self, method: str, lease: Document) -> bool:
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease}
        try:
            self._cluster.lease(method, NAME, body)
        except (AlreadyExists, StateConflict):  # another was quicker
            self._renewed = -1e9
            return False
        return True
