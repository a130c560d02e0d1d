"""A seedable schedule of faults: who dies when. The seed prints, and replays by KORRIGO_CHAOS_SEED.

`tests/chaos` runs it against an `Instance` while clients work; every victim dies at least twice, the data of the
broker are wiped once in the middle.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.instance import Instance

WIPE = "wipe_broker"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: the victim, and the pause before it."""

    number: int
    victim: str
    pause_seconds: float


def schedule(seed: int, victims: Sequence[str], *, faults: int, pause: tuple[float, float]) -> list[Fault]:
    """Draw `faults` victims: each at least twice, the rest at random, one wipe in the middle."""
    choose = random.Random(seed)
    drawn = [*victims, *victims]
    drawn += [choose.choice(victims) for _ in range(faults - len(drawn) - 1)]
    choose.shuffle(drawn)
    drawn.insert(len(drawn) // 2, WIPE)
    return [Fault(number, victim, choose.uniform(*pause)) for number, victim in enumerate(drawn, start=1)]


@dataclass
class Chaos:
    """Carries out a schedule; `done` counts what really died."""

    instance: Instance
    seed: int
    plan: Sequence[Fault]
    kill_server: dict[str, Callable[[], None]]
    log: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    finished_at: float = 0.0

    def run(self, wait: Callable[[float], bool]) -> None:
        """Carry out every fault; `wait(seconds)` returns True when the test is over early."""
        choose = random.Random(self.seed + 1)
        began = time.monotonic()
        for fault in self.plan:
            if wait(fault.pause_seconds):
                break
            what = self._strike(fault.victim, choose)
            self.done[fault.victim] += 1
            self.log.append(f"{time.monotonic() - began:6.1f} s  {fault.number:3d}  {what}")
            print(self.log[-1], flush=True)
        self.finished_at = time.monotonic()

    def _strike(self, victim: str, choose: random.Random) -> str:
        if victim == WIPE:
            self.instance.wipe_broker()
            return "the broker's data were wiped"
        if victim in self.kill_server:
            self.kill_server[victim]()
            return f"{victim} was killed and started again"
        for _ in range(20):
            what = self.instance.kill(victim, choose)
            if "gone already" not in what:
                return what
        raise AssertionError(f"no {victim} lived long enough to be killed")
