"""The schedule of faults keeps its promises for any seed, and a seed replays."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.faults import WIPE, schedule

VICTIMS = ["api", "worker", "pool_child", "relay", "sweeper", "postgres", "rabbitmq"]


@pytest.mark.parametrize("seed", range(50))
def test_every_victim_twice_and_one_wipe_in_the_middle(seed: int) -> None:
    plan = schedule(seed, VICTIMS, faults=32, pause=(1, 2))
    count = Counter(fault.victim for fault in plan)
    assert len(plan) == 32 and count[WIPE] == 1 and all(count[victim] >= 2 for victim in VICTIMS)
    assert 10 <= next(fault.number for fault in plan if fault.victim == WIPE) <= 22
    assert plan == schedule(seed, VICTIMS, faults=32, pause=(1, 2))
    assert plan != schedule(seed + 1, VICTIMS, faults=32, pause=(1, 2))
