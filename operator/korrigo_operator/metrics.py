"""What the operator counts; served on KORRIGO_HTTP__METRICS_PORT."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client.core import Metric

from korrigo_kit.telemetry.metrics import WORK_BUCKETS, counter, gauge, histogram

ACTIONS = (
    "RetryImport", "RetryFinalize", "ForceUnlock", "ReleaseExpiredLocks", "RecreateAuditEvent", "CleanupTempFiles",
    "VerifyAudit",
)  # fmt: skip
PHASES = ("Open", "Healing", "Waiting", "NeedsPerson", "Resolved")

sweeps = histogram(
    "korrigo_operator_sweep_duration_seconds",
    "Sweeps of the operator, by how they ended; partial: a room or an object was left for the next.",
    WORK_BUCKETS,
    result=("complete", "partial", "failed"),
)
acts = counter(
    "korrigo_operator_acts_total",
    "Interventions that the operator had done, by result.",
    action=ACTIONS,
    result=("succeeded", "failed"),
)
last_sweep = gauge("korrigo_operator_last_sweep_timestamp_seconds", "When a sweep last came to its end; 0 before one.")
objects = gauge("korrigo_operator_stuck_copies", "StuckCopy objects by phase.", phase=PHASES)
circuit_open = gauge("korrigo_operator_circuit_open", "1 while the operator does nothing because its acts do not help.")
leading = gauge("korrigo_operator_leading", "1 while this operator holds the lease, so that it is the one that acts.")


class State:
    """What the last sweep saw, for the gauges."""

    def __init__(self) -> None:
        self.swept_at = 0.0
        self.phases: Mapping[str, int] = {}
        self.is_circuit_open = False
        self.is_leading = False

    def swept(self, phases: Mapping[str, int], *, is_circuit_open: bool) -> None:
        """Note the end of a sweep."""
        self.swept_at, self.phases, self.is_circuit_open = time.time(), phases, is_circuit_open

    def gauges(self) -> Iterable[Metric]:
        """Tell them."""
        yield last_sweep.value(self.swept_at)
        yield objects.family({(phase,): float(number) for phase, number in self.phases.items()})
        yield circuit_open.value(float(self.is_circuit_open))
        yield leading.value(float(self.is_leading))
