"""What the operator does in a cluster, without one: stuck work is healed by the very same policies, by their defaults.

Meant to run beside the sweeper of `korrigo run all` (`kit.serve.run(beside_sweeper=…)`); not wired before the drills
have passed with it. It shall live and die with the sweeper: a machine whose sweeper is silent needs a person, and the
alert that says so must not be talked away by somebody else who heals.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from korrigo_kit import context, interventions, vitals
from korrigo_kit.errors import KorrigoError
from korrigo_kit.interventions import ACTIONS, OPERATOR, Asked
from korrigo_kit.room import Process, Runtime
from korrigo_kit.stuck import Stuck
from korrigo_operator.policies import healing
from korrigo_operator.policies.facts import ACT, Acts, Found, Limits

log = logging.getLogger("korrigo.healing")

# As often as the operator sweeps by default.
INTERVAL_SECONDS = 30.0


def beside_the_sweeper(process: Process, stop: threading.Event) -> None:
    """Heal until told to stop; whatever fails, the next round begins from what is there."""
    while not stop.wait(INTERVAL_SECONDS):
        try:
            with context.bind(request_id=context.accept_request_id(None)):
                heal(process.runtimes)
        except Exception:  # a healer that died silently would be worse than one that tries in vain
            log.exception("healing failed")


def heal(rooms: Mapping[str, Runtime], limits: Limits | None = None) -> int:
    """Look into every room once and do what the policies decide; returns how many acts were done.

    A room that does not answer is left out: its work waits for it in any case.
    """
    found: list[Found] = []
    acts: list[vitals.Vitals] = []
    for name, rt in rooms.items():
        try:
            listed = rt.room.stuck(rt)
            with rt.db.transaction() as tx:
                listed = vitals.with_tries(tx, listed)
            acts.append(vitals.vitals(rt.db))
        except KorrigoError as error:
            log.warning("%s cannot be looked into: %s", name, error.reason, extra={"reason": error.reason})
            continue
        found += [_fact(item) for item in listed]
    if not found:
        return 0
    # The rooms' own clock, that of the database: what they say happened then.
    now = max(room.now for room in acts)
    decided = healing.decide(found, limits or Limits(), _sum(acts), now)
    return sum(_do(rooms, item, decision.action) for item, decision in decided if decision.verdict == ACT)


def _do(rooms: Mapping[str, Runtime], found: Found, action: str) -> bool:
    reason = f"automatic: {found.stage} {found.reason}"
    asked = Asked(healing.uid(found, action), action, found.kind, found.id, reason, actor=OPERATOR)
    try:
        outcome = interventions.intervene(rooms[ACTIONS[action]], asked)
    except KorrigoError as error:
        log.warning("%s of %s was not done: %s", action, found.id, error.reason, extra={"reason": error.reason})
        return False
    log.info("%s of %s: %s", action, found.id, outcome.state)
    return True


def _fact(item: Stuck) -> Found:
    return Found(
        room=item.room, stage=item.stage, reason=item.reason, kind=item.subject_type, id=item.subject_id,
        since=item.since, copies=item.copies, job_id=item.job_id, attempts=item.attempts, lost_leases=item.lost_leases,
        error_reason=item.error_reason, exam_id=item.exam_id, anonymous_id=item.anonymous_id, tried=item.tried,
        tried_at=item.tried_at,
    )  # fmt: skip


def _sum(acts: list[vitals.Vitals]) -> Acts:
    failed = [found.acts_failed_at for found in acts if found.acts_failed_at is not None]
    return Acts(
        last_hour=sum(found.acts_last_hour for found in acts),
        failures=sum(found.acts_failed for found in acts),
        failed_at=max(failed, default=None),
    )
