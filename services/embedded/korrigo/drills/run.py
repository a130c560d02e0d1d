"""One run of drills from the empty folder to the verdicts: instance, alerting, health, drills, end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from korrigo.drills.drill import Drill
from korrigo.drills.engine import Engine, Result, Say
from korrigo.drills.scratch import Scratch
from korrigo.drills.stage import Stage
from korrigo.drills.watch import Watch


def run(
    kinds: Sequence[type[Drill]], *, keep: Path | None, say: Say, hold_seconds: float = 0.0
) -> tuple[list[Result], list[str]]:
    """Run these drills; return their results and what was wrong before the first. Call in the main thread.

    `hold_seconds` makes outages longer than they have to be.
    """
    begun = time.monotonic()

    def say_when(text: str) -> None:
        say(f"{time.monotonic() - begun:6.1f} s  {text}")

    with ExitStack() as stack:
        say_when("starting a scratch instance")
        scratch = Scratch(keep=keep)
        stack.callback(scratch.stop)
        scratch.start()
        stage = Stage(scratch)
        stack.callback(stage.close)
        stage.watch = Watch(scratch.folder, scratch.url, stage.token_file())
        stack.callback(stage.watch.close)
        engine = Engine(stage, say_when, hold_seconds)
        say_when("looking at the healthy instance")
        wrong = engine.check_health()
        results = engine.run(kinds)
        say_when("ending the scratch instance")
    return results, wrong
