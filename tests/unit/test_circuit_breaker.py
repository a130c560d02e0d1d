"""The circuit breaker over many sweeps: what is on trial counts as not healed until that is known.

A little world of rooms, told by its own clock: an act heals or it does not, and what is being tried may or may not be
listed as stuck meanwhile (work that is retried is not).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from korrigo_kit import vitals
from korrigo_operator.policies import facts, healing
from korrigo_operator.policies.facts import ACT, Acts, Found, Limits

START = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
SWEEP = timedelta(seconds=30)


def relapsed(number: int) -> Found:
    """Something that is stuck again since an act of an hour ago."""
    since = START - timedelta(minutes=30)
    tried_at = START - timedelta(hours=1)
    return Found("ingest", "import", facts.LOST_TASK, "scan", f"s{number}", since, tried=1, tried_at=tried_at)


@dataclass
class World:
    """What is stuck, and what was done."""

    items: dict[str, Found]
    # Those that an act heals, and whether what is tried is listed until it is known whether that helped.
    curable: Collection[str] = ()
    is_listed: bool = True
    now: datetime = START

    def sweep(self) -> list[str]:
        """Decide and act as a sweep does, and let time pass; returns the reasons, oldest first."""
        listed = [item for item in self.items.values() if self._is_stuck(item)]
        decided = healing.decide(listed, Limits(), self._acts(), self.now)
        for item, decision in decided:
            if decision.verdict == ACT:
                self.items[item.id] = replace(item, tried=item.tried + 1, tried_at=self.now)
        self.now += SWEEP
        return [decision.reason for _, decision in decided]

    def acted_in(self, minutes: float) -> int:
        """Sweep for so long; returns how many acts there were."""
        until, acts = self.now + timedelta(minutes=minutes), 0
        while self.now < until:
            acts += self.sweep().count("Acting")
        return acts

    def _is_stuck(self, item: Found) -> bool:
        if item.tried_at is None or item.tried_at < START:
            return True
        if item.id in self.curable:
            return False
        return self.is_listed or self.now - item.tried_at > timedelta(seconds=90)

    def _acts(self) -> Acts:
        tried = [item for item in self.items.values() if item.tried_at is not None]
        fresh = timedelta(seconds=vitals.UNPROVEN_SECONDS)
        again = [item for item in tried if item.tried > 1 and item.tried_at and self.now - item.tried_at <= fresh]
        return Acts(acted_at=max((item.tried_at for item in tried if item.tried_at), default=None), unproven=len(again))


def world(number: int, **given: object) -> World:
    return World({item.id: item for item in map(relapsed, range(number))}, **given)  # type: ignore[arg-type]


def test_the_policies_and_the_rooms_wait_equally_long() -> None:
    assert timedelta(seconds=vitals.UNPROVEN_SECONDS) == healing.UNPROVEN


@pytest.mark.parametrize("is_listed", [True, False])
def test_one_trial_lets_nothing_else_through_until_it_is_proven(is_listed: bool) -> None:
    """As many as open the breaker, not one more: the one on trial still counts."""
    rooms = world(5, is_listed=is_listed)
    assert rooms.sweep() == ["Acting", *["CircuitOpen"] * 4]
    for _ in range(19):
        reasons = rooms.sweep()
        assert "Acting" not in reasons, f"a second act after {rooms.now - START}"
        assert reasons.count("CircuitOpen") >= 4
    assert rooms.now - START == timedelta(minutes=10)
    assert rooms.sweep().count("Acting") == 1


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_trial_that_relapses_keeps_it_open(is_listed: bool) -> None:
    """In an hour one act every ten minutes, whichever it is spent on."""
    assert world(5, is_listed=is_listed).acted_in(60) == 6


def test_a_trial_that_helped_closes_it() -> None:
    """Two minutes later the trial counts as healed, and the others are acted on at once."""
    rooms = world(5, curable=["s0", "s1", "s2", "s3", "s4"])
    assert rooms.sweep() == ["Acting", *["CircuitOpen"] * 4]
    reasons = [rooms.sweep() for _ in range(5)]
    assert reasons[:4] == [["CircuitOpen"] * 4] * 4
    assert reasons[4] == ["Acting"] * 4
    assert rooms.sweep() == []


def test_a_trial_that_helped_does_not_close_it_for_all_the_others_that_relapsed() -> None:
    """Of seven, six are left: still more than the breaker bears."""
    rooms = world(7, curable=["s0"])
    assert rooms.acted_in(20) == 2


def test_something_new_on_trial_is_one_act_too() -> None:
    """Older than what relapsed, hence tried first; it must not be another one with every sweep."""
    rooms = world(5)
    for number in range(3):
        rooms.items[f"n{number}"] = Found(
            "ingest", "import", facts.LOST_TASK, "scan", f"n{number}", START - timedelta(hours=2)
        )
    assert rooms.acted_in(9) == 1


def test_fewer_than_the_breaker_bears_are_acted_on_at_once() -> None:
    assert world(4).sweep() == ["Acting"] * 4
