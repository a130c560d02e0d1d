"""What one look for stuck work costs among a million copies: the issue's figure is a second.

`make bench` measures it; tests/operating runs the same at 50 000 copies and looks at what is found, not at the clock.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from harness.grading_copies import Desk
from harness.many_copies import STUCK, fill
from harness.servers import Postgres
from harness.whole_rooms import WholeRooms
from korrigo_grading.flows import stuck

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]
COPIES = 1_000_000


def test_a_look_at_a_million_copies_takes_less_than_a_second(postgres_server: Postgres, tmp_path: Path) -> None:
    rooms = WholeRooms(postgres_server, tmp_path)
    try:
        Desk(rooms["grading"]).exam()
        fill(rooms, COPIES)
        stuck.found(rooms["grading"])  # the first reads from disk
        began = time.perf_counter()
        found = stuck.found(rooms["grading"])
        seconds = time.perf_counter() - began
    finally:
        rooms.close()
    print(f"\n{seconds * 1000:.1f} ms for {COPIES} copies, {len(found)} stuck")
    assert Counter(item.stage for item in found) == {"finalize": STUCK, "lock": STUCK}
    assert seconds < 1
