"""How long a drill waits: as long as is declared on a machine that is its own, longer on one that is crowded.

Only waits grow. What is promised in seconds (healing by itself, answers during an outage) is held against the clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from korrigo_kit.errors import Timeout

T = TypeVar("T")


def crowding() -> float:
    """Tell by how much everything takes longer, 1 on a machine that has less than two tasks for each processor."""
    return max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))


def wait_for(what: str, look: Callable[[], T | None], seconds: float, every_seconds: float = 0.2) -> T:
    """Look again and again until something true is found; raises Timeout DRILL_WAITED."""
    began = time.monotonic()
    while not (found := look()):
        if time.monotonic() - began > seconds * crowding():
            raise Timeout("DRILL_WAITED", f"{what}: not within {seconds:g} s")
        time.sleep(every_seconds)
    return found
