"""The GradingPolicy: its limits in plain numbers, and what the last sweep saw as its status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial

from korrigo_operator.asking import Seen
from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.kinds import SINGLETON, Condition, GradingPolicySpec, GradingPolicyStatus
from korrigo_operator.policies import healing
from korrigo_operator.policies.durations import seconds
from korrigo_operator.policies.facts import AUTO, DRAINED_SECONDS, Found, Limits
from korrigo_operator.sweeping import objects

PLURAL = "gradingpolicies"
# Type, status, reason and message; the rest is the same for every condition of a sweep.
Say = Callable[[str, bool | None, str, str], Condition]


def read(cluster: Cluster) -> Document | None:
    """Return the policy, None when there is none."""
    return cluster.get(PLURAL, SINGLETON)


def make(cluster: Cluster) -> Document | None:
    """Make the policy with every default; None when somebody was quicker."""
    return cluster.create(PLURAL, "GradingPolicy", {"name": SINGLETON}, {})


def limits_of(item: Document) -> Limits:
    """Return a policy in plain numbers."""
    spec = GradingPolicySpec.model_validate(item.get("spec") or {})
    remediation, after = spec.remediation, spec.stuck_after
    return Limits(
        mode=remediation.mode,
        actions=tuple(remediation.actions),
        per_sweep=remediation.budget.per_sweep,
        per_hour=remediation.budget.per_hour,
        per_subject=remediation.budget.per_subject,
        cool_down_seconds=seconds(remediation.budget.cool_down),
        breaker_failures=remediation.breaker.failures,
        breaker_cool_down_seconds=seconds(remediation.breaker.cool_down),
        exhausted_after_seconds=seconds(remediation.exhausted_after),
        stuck_after_seconds={
            "import": seconds(after.import_), "finalize": seconds(after.finalize), "lock": seconds(spec.lock_ttl),
        },
        most=spec.max_stuck_copies,
        is_paused=spec.paused or ("metadata" in item and objects.is_paused(item)),
    )  # fmt: skip


def interval_seconds(item: Document) -> float:
    """Return the time between two sweeps, a second at least."""
    return max(1.0, seconds(GradingPolicySpec.model_validate(item.get("spec") or {}).sweep_interval))


def is_circuit_open(found: list[Found], limits: Limits, seen: Seen, now: datetime) -> bool:
    """Tell whether acts have stopped because they do not help."""
    return healing.trials_left(found, limits, seen.acts, now) is not None


def tell(
    cluster: Cluster, item: Document, limits: Limits, seen: Seen, missing: int | None, now: datetime, *, is_open: bool
) -> None:
    """Write the status, and an Event when acting begins or stops."""
    old = item.get("status")
    say = partial(objects.condition, old, now=now, generation=item["metadata"].get("generation", 0))
    by_reason: Counter[tuple[str, str]] = Counter(seen.counts)
    acting = _acting(say, limits, seen, is_open=is_open)
    if objects.has_changed(old, "Acting", acting.reason):
        cluster.tell(item, acting.reason, acting.message, is_warning=acting.status != "True")
    status = GradingPolicyStatus.model_validate(
        {
            "stuck": sum(by_reason.values()),
            "byReason": [
                {"stage": stage, "reason": reason, "copies": copies}
                for (stage, reason), copies in sorted(by_reason.items())
                if copies
            ],
            "expiredLocks": by_reason["lock", "lock_expired"],
            "actsLastHour": seen.acts.last_hour,
            "lastSweepTime": now,
            "conditions": [_ready(say, seen), acting, _complete(say, missing), _drained(say, seen)],
        }
    )
    objects.write(cluster, PLURAL, item, status=status)


def _ready(say: Say, seen: Seen) -> Condition:
    if not seen.silent:
        return say("Ready", True, "RoomsAnswer", "every room answers")
    rooms = ", ".join(f"{room} ({reason})" for room, reason in sorted(seen.silent.items()))
    return say("Ready", False, "RoomsSilent", f"without an answer: {rooms}")


def _acting(say: Say, limits: Limits, seen: Seen, *, is_open: bool) -> Condition:
    if limits.is_paused:
        return say("Acting", False, "Paused", "paused: nothing is done")
    if limits.mode != AUTO:
        return say("Acting", False, limits.mode, "left to people")
    if is_open:
        return say("Acting", False, "CircuitOpen", "acts did not help lately: waiting")
    if seen.acts.last_hour >= limits.per_hour:
        return say("Acting", False, "BudgetSpent", f"{limits.per_hour} acts in the last hour")
    return say("Acting", True, AUTO, "what can be healed is healed")


def _complete(say: Say, missing: int | None) -> Condition:
    if missing is None:
        return say("AuditComplete", None, "NotCounted", "audit was not asked or is silent")
    if not missing:
        return say("AuditComplete", True, "Complete", "the trail holds every event")
    text = (
        f"{missing} events are missing: an Intervention VerifyAudit verifies, RecreateAuditEvent stores again what its"
        " source still holds, with requestedBy and a second admin in korrigo.io/approved-by"
    )
    return say("AuditComplete", False, "EventsMissing", text)


def _drained(say: Say, seen: Seen) -> Condition:
    late = {room: found for room, found in seen.vitals.items() if found.outbox_oldest_seconds > DRAINED_SECONDS}
    if not late:
        return say("OutboxesDrained", True, "Drained", "events get out")
    rooms = ", ".join(
        f"{room} ({found.outbox_waiting} events, {found.outbox_oldest_seconds:.0f} s)" for room, found in late.items()
    )
    return say("OutboxesDrained", False, "EventsWait", f"not sent: {rooms}; see the broker")
