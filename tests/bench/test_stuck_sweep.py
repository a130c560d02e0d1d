"""What one look for stuck work costs among a million copies: the issue's figure is a second.

`make bench` measures it; tests/operating runs the same at 50 000 copies and looks at what is found, not at the clock.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from harness.grading_copies import Desk
from harness.many_copies import STUCK, fill
from harness.servers import Postgres
from harness.whole_rooms import WholeRooms
from korrigo_grading.flows import stuck
from korrigo_kit.stuck import Stuck

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]
COPIES = 1_000_000


def _look(rooms: WholeRooms) -> tuple[float, list[Stuck]]:
    began = time.perf_counter()
    found = stuck.found(rooms["grading"])
    return time.perf_counter() - began, found


def test_a_look_at_a_million_copies_takes_less_than_a_second(postgres_server: Postgres, tmp_path: Path) -> None:
    rooms = WholeRooms(postgres_server, tmp_path)
    try:
        Desk(rooms["grading"]).exam()
        fill(rooms, COPIES)
        looks = [_look(rooms) for _ in range(7)][1:]  # the first reads from disk
    finally:
        rooms.close()
    (found,) = {frozenset(items) for _, items in looks}
    times = sorted(seconds * 1000 for seconds, _ in looks)
    print(f"\n{median(times):.1f} ms ({times[0]:.1f} to {times[-1]:.1f}) for {COPIES} copies, {len(found)} stuck")
    assert Counter(item.stage for item in found) == {"finalize": STUCK, "lock": STUCK}
    assert median(times) < 1000
