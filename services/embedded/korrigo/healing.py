"""What the operator does in a cluster, without one: stuck work is healed by the very same policies, by their defaults.

Runs in a thread beside the sweeper of a process that has every room (`korrigo up`, `korrigo run all`), because an act
on one room's work may be another room's to do. It lives and dies with the sweeper: a machine whose sweeper is silent
needs a person, and the alert that says so must not be talked away by somebody else who heals.

    rooms tell what is stuck ──► policies decide ──► an intervention of actor `operator`, once by its uid
                                            └──────► told in the log, once: what it waits for, what needs a person
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from korrigo.rooms import NAMES
from korrigo.settings import HealingSettings
from korrigo_kit import context, interventions, vitals
from korrigo_kit.errors import KorrigoError
from korrigo_kit.interventions import ACTIONS, OPERATOR, Asked
from korrigo_kit.room import Process, Runtime
from korrigo_kit.settings import Settings
from korrigo_kit.stuck import STAGES, Stuck
from korrigo_kit.switches import READ_ONLY, Switches
from korrigo_operator.asking import Seen, facts
from korrigo_operator.policies import healing
from korrigo_operator.policies.facts import ACT, ASK, AUTO, OBSERVE, WAIT, Decision, Found, Limits

log = logging.getLogger("korrigo.healing")

Beside = Callable[[Process, threading.Event], None]
Tell = Callable[[Sequence[tuple[Found, Decision]]], None]


def beside(rooms: Sequence[str], settings: Settings) -> Beside | None:
    """Return what runs beside the sweeper of these rooms: nothing where healing is off or somebody else's."""
    is_whole = "all" in rooms or set(rooms) == set(NAMES)
    return beside_the_sweeper if is_whole and settings.get(HealingSettings).mode != "off" else None


def beside_the_sweeper(process: Process, stop: threading.Event) -> None:
    """Heal until told to stop; whatever fails, the next round begins from what is there."""
    rooms = process.runtimes
    settings = rooms["ingest"].settings
    switches = Switches(rooms["ingest"].db)
    telling = Telling()
    while not stop.wait(settings.get(HealingSettings).sweep_seconds):
        try:
            with context.bind(request_id=context.accept_request_id(None)):
                heal(rooms, limits(settings, is_paused=bool(switches.value(READ_ONLY))), telling)
        except KorrigoError as error:
            log.warning("healing waits: %s", error.reason, extra={"reason": error.reason})
        except Exception:  # a healer that died silently would be worse than one that tries in vain
            log.exception("healing failed")


def limits(settings: Settings, *, is_paused: bool = False) -> Limits:
    """Return the policy of this machine: the defaults, the installation's own idea of stuck, and its mode."""
    return Limits(
        mode=AUTO if settings.get(HealingSettings).mode == "auto" else OBSERVE,
        stuck_after_seconds=dict.fromkeys(STAGES, settings.jobs.stuck_seconds),
        # Read-only means that nothing moves but what people had asked for before, as during an incident.
        is_paused=is_paused,
    )


class Telling:
    """Tells in the log what was decided about each thing, once for as long as it is decided so."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], str] = {}

    def __call__(self, decided: Sequence[tuple[Found, Decision]]) -> None:
        """Tell what is new of a round; what is no longer stuck is forgotten."""
        before, self._told = self._told, {item.key: decision.reason for item, decision in decided}
        for item, decision in decided:
            if decision.verdict == ACT or before.get(item.key) == decision.reason:
                continue
            level = {ASK: logging.WARNING, WAIT: logging.DEBUG}.get(decision.verdict, logging.INFO)
            fields = {f"{item.kind}_id": item.id, "reason": decision.reason}
            log.log(level, "stuck in %s, %s: %s", item.stage, item.reason, decision.message, extra=fields)


def _silently(_: Sequence[tuple[Found, Decision]]) -> None:
    return None


def heal(rooms: Mapping[str, Runtime], limits: Limits | None = None, tell: Tell = _silently) -> int:
    """Look into every room once and do what the policies decide; returns how many acts were done.

    A room that does not answer is left out: its work waits for it in any case.
    """
    seen = Seen()
    stuck: list[Stuck] = []
    for name, rt in rooms.items():
        try:
            listed = rt.room.stuck(rt)
            with rt.db.transaction() as tx:
                listed = vitals.with_tries(tx, listed)
            seen.vitals[name] = vitals.vitals(rt.db)
            stuck += listed
        except KorrigoError as error:
            log.warning("%s cannot be looked into: %s", name, error.reason, extra={"reason": error.reason})
    seen.found = facts(stuck, seen.vitals.values())
    if not seen.found:
        tell(())
        return 0
    # The rooms' own clock, that of the database: what they say happened then.
    now = max(room.now for room in seen.vitals.values())
    decided = healing.decide(seen.found, limits or Limits(), seen.acts, now)
    tell(decided)
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
