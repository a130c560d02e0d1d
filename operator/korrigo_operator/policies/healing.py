"""What to do about what is stuck: a chain of policies, the first that has an opinion decides.

    found ─► paused? ─► young? ─► what would help? ─► does it only wait? ─► can it succeed? ─► mode ─► tried enough?
          ─► too soon after the last try? ─► breaker ─► budget ─► act

Used by the operator and by the sweeper of `korrigo up`: what is healed does not depend on where the product runs. Work
whose attempts are used up is a fact that people must learn of (FinalizationRetriesExhausted): it is never tried again
at once, and only if its error is one that passes by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from korrigo_operator.policies import facts
from korrigo_operator.policies.facts import ACT, ASK, LOOK, WAIT, Acts, Decision, Found, Limits

HELPS = {"import": "RetryImport", "finalize": "RetryFinalize", "lock": "ReleaseExpiredLocks"}
# Errors of quarantined work that a later attempt may not meet again: time and room on the machine, parts that were
# away. Everything else (BUG, BLOB_CORRUPTED, a bad document) comes back until a person acts.
PASSING = frozenset(
    {
        "TIMEOUT", "DATABASE_TIMEOUT", "DATABASE_BUSY", "DATABASE_UNAVAILABLE", "BROKER_UNAVAILABLE",
        "OBJECT_STORE_UNAVAILABLE", "SANDBOX_LOST", "WORKER_LOST", "DISK_FULL",
    }
)  # fmt: skip
# Whether an act helped is known after this time (korrigo_kit.vitals; a test holds them together).
UNPROVEN = timedelta(minutes=2)
_GUARDED = ("ForceUnlock", "RecreateAuditEvent")
Policy = Callable[[Found, Limits, datetime], Decision | None]


def decide(found: Sequence[Found], limits: Limits, acts: Acts, now: datetime) -> list[tuple[Found, Decision]]:
    """Decide about everything that is stuck, oldest first; budgets are shared in that order."""
    left = min(limits.per_sweep, max(0, limits.per_hour - acts.last_hour))
    trials = trials_left(found, limits, acts, now)
    decided = []
    for item in sorted(found, key=lambda one: (one.since, one.key)):
        decision = judge(item, limits, now)
        if decision.verdict == ACT and trials == 0:
            decision = _hold(decision, "CircuitOpen", "acts did not help lately: waiting before one is tried again")
        elif decision.verdict == ACT and left <= 0:
            decision = _hold(decision, "BudgetSpent", "the budget of acts is spent: waiting for room in it")
        if decision.verdict == ACT:
            left -= 1
            trials = None if trials is None else trials - 1
        decided.append((item, decision))
    return decided


def judge(found: Found, limits: Limits, now: datetime) -> Decision:
    """Decide about one thing, as if there were no other."""
    for policy in CHAIN:
        decision = policy(found, limits, now)
        if decision is not None:
            return decision
    action = HELPS[found.stage]
    return Decision(ACT, "Acting", f"{action} is done: {_said(found)}", action)


def uid(found: Found, action: str) -> str:
    """Return the uid of the next automatic act on this: the same for everybody who decides on the same facts."""
    parts = (*found.key, found.reason, str(int(found.since.timestamp() * 1000)), str(found.tried), action)
    return f"auto-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:40]}"


# ---------------------------------------------------------------------------------------------- the chain
def _paused(found: Found, limits: Limits, now: datetime) -> Decision | None:
    if limits.is_paused:
        return Decision(LOOK, "PolicyPaused", "the policy is paused", HELPS[found.stage])
    if found.is_paused:
        return Decision(LOOK, "Paused", "paused by the annotation korrigo.io/reconcile", HELPS[found.stage])
    return None


def _young(found: Found, limits: Limits, now: datetime) -> Decision | None:
    if now - found.since < timedelta(seconds=limits.stuck_after_seconds.get(found.stage, 60.0)):
        return Decision(WAIT, "TooYoung", "not stuck for long enough", HELPS[found.stage])
    return None


def _waits(found: Found, limits: Limits, now: datetime) -> Decision | None:
    """Leave work alone that goes on by itself as soon as something else is back."""
    if found.reason == facts.WORKER_DEAD:
        return Decision(WAIT, "NoWorker", "no worker of its room lives; it goes on as soon as one does")
    if found.reason == facts.LOST_TASK and found.is_cut_off:
        return Decision(WAIT, "NoBroker", "nothing can be rung for; it goes on by itself once the broker is back")
    if found.reason == facts.NO_PROGRESS and found.stage != "lock":
        needs = f" ({found.error_reason})" if found.error_reason else ""
        return Decision(WAIT, "NeedsAnotherPart", f"what it needs is away{needs}; it goes on by itself after")
    return None


def _hopeless(found: Found, limits: Limits, now: datetime) -> Decision | None:
    """Never retry what will not succeed: a person has to change something first."""
    if found.reason == facts.RETRIES_EXHAUSTED and found.error_reason not in PASSING:
        error = found.error_reason or "an unknown reason"
        return _ask(found, "NeedsPerson", f"failed with {error}, which does not pass by itself: see the runbook")
    return None


def _mode(found: Found, limits: Limits, now: datetime) -> Decision | None:
    action = HELPS[found.stage]
    if limits.mode == facts.OBSERVE:
        return Decision(LOOK, "Observing", "the policy only observes", action)
    if limits.mode == facts.SUGGEST:
        return _ask(found, "Suggested", f"{action} would help; the policy leaves it to a person")
    if action not in limits.actions or action in _GUARDED:
        return _ask(found, "ActionNotAllowed", f"{action} would help; the policy does not allow it")
    return None


def _tried_enough(found: Found, limits: Limits, now: datetime) -> Decision | None:
    if found.tried >= limits.per_subject:
        return _ask(found, "AttemptsSpent", f"{found.tried} acts in a day did not help: a person has to look")
    return None


def _too_soon(found: Found, limits: Limits, now: datetime) -> Decision | None:
    action = HELPS[found.stage]
    if found.reason == facts.RETRIES_EXHAUSTED:
        wait = timedelta(seconds=limits.exhausted_after_seconds * 2**found.tried)
        if now - found.since < wait:
            message = f"its attempts are used up; tried again {_until(found.since + wait)}"
            return Decision(WAIT, "CoolingDown", message, action)
    if found.tried_at is not None:
        wait = timedelta(seconds=limits.cool_down_seconds * 2 ** (found.tried - 1))
        if now - found.tried_at < wait:
            return Decision(WAIT, "CoolingDown", f"tried lately; again {_until(found.tried_at + wait)}", action)
    return None


CHAIN: tuple[Policy, ...] = (_paused, _young, _waits, _hopeless, _mode, _tried_enough, _too_soon)


# ---------------------------------------------------------------------------------------------- breaker
def trials_left(found: Sequence[Found], limits: Limits, acts: Acts, now: datetime) -> int | None:
    """Tell how many acts the circuit breaker lets through now: None = any number, 0 = open, 1 = one on trial.

    It opens when as many acts failed in a row, or as many subjects are stuck again after an act, as the policy says.
    One that is being tried again stays among those until it is known whether that helped, though its room may not
    list it meanwhile: else the one on trial would let all the others through.
    """
    relapsed = sum(has_relapsed(item, now) for item in found)
    listed = sum(item.tried > 1 and _is_unproven(item, now) for item in found)
    if acts.failures + relapsed + max(0, acts.unproven - listed) < limits.breaker_failures:
        return None
    moments = [item.tried_at for item in found] + [acts.failed_at, acts.acted_at]
    last = max((moment for moment in moments if moment is not None), default=None)
    return 1 if last is None or now - last >= timedelta(seconds=limits.breaker_cool_down_seconds) else 0


def has_relapsed(found: Found, now: datetime) -> bool:
    """Tell whether it is stuck although something was done about it: not just now, or not for the first time."""
    if found.tried_at is None:
        return False
    return found.tried > 1 or found.since > found.tried_at or not _is_unproven(found, now)


def _is_unproven(found: Found, now: datetime) -> bool:
    return found.tried_at is not None and now - found.tried_at <= UNPROVEN


def _hold(decision: Decision, reason: str, message: str) -> Decision:
    return replace(decision, verdict=WAIT, reason=reason, message=message)


def _ask(found: Found, reason: str, message: str) -> Decision:
    return Decision(ASK, reason, message, HELPS[found.stage])


def _said(found: Found) -> str:
    return f"{found.stage} {found.reason}" + (f" after {found.error_reason}" if found.error_reason else "")


def _until(moment: datetime) -> str:
    return f"at {moment:%H:%M:%S} UTC"
