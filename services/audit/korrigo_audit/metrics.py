"""Whether the audit trail is whole, told at scrape time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import Metric

from korrigo_audit.domain.sequences import ACTIONS, OTHER_ACTION
from korrigo_kit.telemetry.metrics import GaugeSource, gauge

missing_events = gauge(
    "grading_audit_missing_events",
    "Events that a room told and that the audit trail does not hold, by action (OTHER: of no named action).",
    action=(*ACTIONS, OTHER_ACTION),
)
chain_valid = gauge(
    "grading_audit_chain_valid", "0 when an event of the audit trail was changed or removed, else 1."
)

# Counting all records may take long: asked less often then, so that it costs a twentieth of a core at most.
_COST_FACTOR = 20


def gauges(count_missing: Callable[[], Mapping[str, int]], is_chain_valid: Callable[[], bool]) -> list[GaugeSource]:
    """Build the gauge sources of this room from its two stories."""
    counted: dict[str, int] = {}
    rest_until = -1e9

    def missing() -> Iterable[Metric]:
        nonlocal counted, rest_until
        began = time.monotonic()
        if began >= rest_until:
            counted = dict(count_missing())
            ended = time.monotonic()
            rest_until = ended + _COST_FACTOR * max(0.0, ended - began - 0.25)
        yield missing_events.family({(action,): float(number) for action, number in counted.items()})

    def chain() -> Iterable[Metric]:
        yield chain_valid.value(1.0 if is_chain_valid() else 0.0)

    return [missing, chain]
