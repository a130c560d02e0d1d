"""Runs drills and judges them: as many at once as do not disturb each other, in two halves.

First, under the shipped rules as they are, what heals by itself: nothing may fire, and healing takes less than a
minute. Then, under the divided rules, what needs a person: the declared alert must come, no other may, doctor must name
the cause first, the remedy must heal, and the alert must end.

An alert belongs to the drills that run when its episode is told first, or that ran within the time its rule looks back
to. One that none of them declared is wrong, and fails all that run.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from korrigo.drills import rules
from korrigo.drills.drill import Drill
from korrigo.drills.patience import crowding
from korrigo.drills.stage import Stage
from korrigo.drills.watch import WATCHDOG, Told, names
from korrigo_kit.errors import KorrigoError

# From the last sign of a cause to Alertmanager's word that it is over: range, evaluation, group_interval, divided.
# The longest range but those of the error budget is an hour, which are three minutes.
RESOLVE_SECONDS = 240.0
SELF_HEALING_SECONDS = 60.0
# Two repeats of the Watchdog and one interval of its group (deploy/alertmanager.yml: 5 and 1 minutes), divided.
SILENT_SECONDS = 33.0
# The error budget looks back for days, which are an hour here: it outlasts the drill that spent it.
LOOKING_BACK = frozenset({"ErrorBudgetBurnFast", "ErrorBudgetBurnSlow"})
_LOOK_SECONDS = 0.25
_HEARD_SECONDS = 15.0
_WATCHDOG_SECONDS = 60.0

Say = Callable[[str], None]


@dataclass
class Result:
    """How a drill went; seconds are None for what did not happen."""

    scenario: str
    cause: str
    name: str
    expected: tuple[str, ...]
    detect_seconds: float | None = None
    first_cause: str = ""
    certainty: float | None = None
    heal_seconds: float | None = None
    resolve_seconds: float | None = None
    incident: str = ""
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def is_passed(self) -> bool:
        """Tell whether everything that was declared came true; a skipped drill is no failure and no success."""
        return not self.problems and not self.skipped


@dataclass
class _Running:
    """A drill under way."""

    drill: Drill
    result: Result
    began_at: float = 0.0
    ended_at: float | None = None

    @property
    def words(self) -> frozenset[str]:
        """What it must have for itself: what it disturbs, and its alerts, which must have ended before."""
        return self.drill.needs | {f"alert {name}" for name in self.drill.expects}

    @property
    def allowed(self) -> frozenset[str]:
        return frozenset((*self.drill.expects, *self.drill.also))


class Engine:
    """One run over some drills."""

    def __init__(self, stage: Stage, say: Say, hold_seconds: float = 0.0) -> None:
        self._hold_seconds = hold_seconds
        self._stage = stage
        self._watch = stage.watch
        self._say = say
        # word -> who has it for himself
        self._taken: dict[str, _Running] = {}
        self._changed = threading.Condition()
        self._all: list[_Running] = []

    def run(self, kinds: Sequence[type[Drill]]) -> list[Result]:
        """Run these drills; the results are in the order of the declarations."""
        running = [_Running(kind(self._stage), _result(kind)) for kind in kinds]
        for found in running:
            if found.drill.needs_volume and not self._stage.scratch.has_volume:
                found.result.skipped = "needs root, to mount a volume in memory"
        todo = [found for found in running if not found.result.skipped]
        self._half([found for found in todo if not found.drill.expects], is_fast=False)
        self._half([found for found in todo if found.drill.expects], is_fast=True)
        return [found.result for found in running]

    def check_health(self) -> list[str]:
        """Return what is wrong before anything was injected: causes that doctor finds on a healthy instance."""
        try:
            found = self._stage.doctor("all")
        except KorrigoError as error:
            return [error.message]
        answers = found.get("scenarios", [found])
        return [f"{answer['scenario']}: {cause['cause']}" for answer in answers for cause in answer["causes"]]

    # ------------------------------------------------------------------------------------- scheduling
    def _half(self, todo: list[_Running], *, is_fast: bool) -> None:
        if not todo:
            return
        started = time.monotonic()
        self._watch.look(is_fast=is_fast)
        inbox = self._watch.inbox
        # The shipped rules are looked at every 15 s; nothing of the first half waits for an alert.
        if is_fast and not inbox.wait(lambda: inbox.first(WATCHDOG, started) is not None, _WATCHDOG_SECONDS):
            for found in todo:
                found.result.problems.append("the alerting itself does not work: no Watchdog arrived")
            return
        self._all = todo
        waiting = list(todo)
        threads: list[threading.Thread] = []
        while waiting:
            with self._changed:
                ready = next((found for found in waiting if self._may_begin(found)), None)
                if ready is None:
                    self._changed.wait(1.0)
                    continue
                self._taken |= dict.fromkeys(ready.words, ready)
            waiting.remove(ready)
            thread = threading.Thread(target=self._one, args=(ready, is_fast), name=ready.result.name, daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        self._blame(todo, started)
        self._watch.look_away()

    def _may_begin(self, running: _Running) -> bool:
        if running.drill.needs_silence:
            return not self._taken
        return not running.words & self._taken.keys()

    def _one(self, running: _Running, is_fast: bool) -> None:
        drill, result = running.drill, running.result
        try:
            drill.prepare()
            running.began_at = time.monotonic()
            self._say(f"{result.name}: {drill.what}")
            (self._needs_person if is_fast else self._heals_itself)(running)
        except KorrigoError as error:
            result.problems.append(f"{error.message} ({error.reason})")
        except Exception as error:  # a drill that breaks must not take the others with it
            result.problems.append(f"{type(error).__name__}: {error}")
        finally:
            with suppress(Exception):
                drill.undo()
            running.ended_at = time.monotonic()
            self._free(running, running.words)
            self._say(f"{result.name}: {'; '.join(result.problems) or 'passed'}")

    def _free(self, running: _Running, words: Iterable[str]) -> None:
        with self._changed:
            for word in words:
                if self._taken.get(word) is running:
                    del self._taken[word]
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------- one drill
    def _heals_itself(self, running: _Running) -> None:
        drill, result = running.drill, running.result
        drill.inject()
        with _Pressure(drill):
            result.heal_seconds = _seconds_until(drill.is_healed, SELF_HEALING_SECONDS)
        result.problems.extend(drill.complaints())
        if result.heal_seconds is None:
            result.problems.append(f"not healed by itself within {SELF_HEALING_SECONDS:g} s")

    def _needs_person(self, running: _Running) -> None:
        drill, result = running.drill, running.result
        drill.inject()
        with _Pressure(drill):
            self._detect(running)
            self._diagnose(drill, result)
            report = self._begin_incident(drill, result)
            hold_seconds = max(drill.hold_seconds, self._hold_seconds if drill.hold_seconds else 0.0)
            time.sleep(max(0.0, running.began_at + hold_seconds - time.monotonic()))
        began = time.monotonic()
        drill.mend()
        for page in drill.pages:
            self._stage.book.mitigate(page, drill.environment())
        drill.remedy()
        # What piled up in a longer outage is more than what piles up in the declared one.
        patience = drill.heal_seconds + max(0.0, hold_seconds - drill.hold_seconds)
        left = _seconds_until(drill.is_healed, patience * crowding())
        if left is None:
            result.problems.append(f"not healed within {drill.heal_seconds:g} s")
        else:
            result.heal_seconds = time.monotonic() - began
        result.problems.extend(drill.complaints())
        # Others may begin while the alerts of this one end.
        self._free(running, drill.needs)
        self._wait_resolved(running, began)
        self._close_incident(drill, result, report)

    def _detect(self, running: _Running) -> None:
        drill, inbox = running.drill, self._watch.inbox

        def all_came() -> bool:
            if drill.falls_silent:
                return time.monotonic() - inbox.heard_at(WATCHDOG) > SILENT_SECONDS
            return all(inbox.first(name, running.began_at) for name in drill.expects)

        if inbox.wait(all_came, drill.detect_seconds):
            first = None if drill.falls_silent else inbox.first(drill.expects[0], running.began_at)
            running.result.detect_seconds = (first.at if first else time.monotonic()) - running.began_at
        else:
            came = names(told for told in inbox.episodes() if told.at >= running.began_at)
            wanted = ", ".join(drill.signs())
            running.result.problems.append(
                f"{wanted}: not noticed within {drill.detect_seconds:g} s (came: {', '.join(came) or 'nothing'})"
            )

    def _diagnose(self, drill: Drill, result: Result) -> None:
        causes = self._stage.doctor(drill.scenario)["causes"]
        if causes:
            result.first_cause, result.certainty = causes[0]["cause"], causes[0]["certainty"]
        if result.first_cause != drill.cause:
            others = ", ".join(f"{cause['cause']} {cause['certainty']}" for cause in causes)
            result.problems.append(f"doctor names first: {result.first_cause or 'nothing'} ({others})")

    def _begin_incident(self, drill: Drill, result: Result) -> Path | None:
        """Begin an incident from the alert, as whoever is called does; return the file of its report."""
        # What stays away is no alert that an incident could begin from.
        about = ("--title", drill.signs()[0]) if drill.falls_silent else ("--alert", drill.expects[0])
        done = self._stage.scratch.korrigo("incident", "new", *about, "--json")
        try:
            found = json.loads(done.stdout)
            result.incident = str(found["id"])
            return Path(found["report"])
        except (ValueError, KeyError):
            result.problems.append(f"no incident was begun: {(done.stderr or done.stdout)[-300:]}")
            return None

    def _close_incident(self, drill: Drill, result: Result, report: Path | None) -> None:
        """Close it with the cause; the report must tell the alert and the cause."""
        if report is None:
            return
        cause = f"{drill.cause}: {drill.what}"
        deadline = time.monotonic() + _HEARD_SECONDS
        while True:
            done = self._stage.scratch.korrigo("incident", "close", result.incident, "--cause", cause, "--json")
            # The product may hear of the end a moment after we did.
            if not done.returncode or "ALERT_STILL_FIRING" not in done.stderr or time.monotonic() > deadline:
                break
            time.sleep(1.0)
        text = report.read_text(encoding="utf-8") if report.exists() else ""
        if done.returncode or drill.expects[0] not in text or cause not in text:
            result.problems.append(f"incident {result.incident} has no report: {(done.stderr or text)[-300:]}")

    def _wait_resolved(self, running: _Running, since: float) -> None:
        inbox = self._watch.inbox

        def is_over() -> bool:
            if running.drill.falls_silent:
                return inbox.heard_at(WATCHDOG) > since
            fired = {told.name for told in inbox.episodes() if told.at >= running.began_at} & running.allowed
            return all(inbox.resolved_at(name, running.began_at) is not None for name in fired - LOOKING_BACK)

        if inbox.wait(is_over, RESOLVE_SECONDS):
            running.result.resolve_seconds = time.monotonic() - since
        else:
            running.result.problems.append(f"alerts do not end within {RESOLVE_SECONDS:g} s")

    # ------------------------------------------------------------------------------------- wrong alerts
    def _blame(self, todo: Sequence[_Running], started: float) -> None:
        """Find for every episode a drill that declared it; one without fails whatever ran when it was told."""
        reach = rules.reach_seconds()
        for told in self._watch.inbox.episodes():
            # The watchdog, and doctor's test alert.
            if dict(told.labels).get("severity") == "none" or told.at < started:
                continue
            # A rule that looks back tells of a drill that is over.
            if any(told.name in found.allowed and _was_running(found, told, reach[told.name]) for found in todo):
                continue
            for found in [found for found in todo if _was_running(found, told)] or todo[-1:]:
                found.result.problems.append(f"wrong alert: {told.name} {_labels(told)}")


def _was_running(found: _Running, told: Told, seconds: float = 0.0) -> bool:
    """Tell whether an alert was told while a drill ran, or so long afterwards."""
    if not found.began_at or told.at < found.began_at:
        return False
    return found.ended_at is None or told.at <= found.ended_at + seconds


def _labels(told: Told) -> str:
    shown = {key: value for key, value in told.labels if key in ("severity", "queue", "volume", "job")}
    return ", ".join(f"{key}={value}" for key, value in sorted(shown.items()))


def _result(kind: type[Drill]) -> Result:
    return Result(kind.scenario, kind.cause, kind.title(), kind.signs())


def _seconds_until(is_so: Callable[[], bool], seconds: float) -> float | None:
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(_LOOK_SECONDS)
    return time.monotonic() - began


class _Pressure:
    """Threads that call `press` as long as the block lasts; what they meet is the drill's own business."""

    def __init__(self, drill: Drill) -> None:
        self._drill = drill
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._go_on, args=(number,), daemon=True) for number in range(drill.pressure)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _go_on(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                self._drill.press(number)
            except Exception:  # people meet refusals and broken connections; that is what the drill is about
                self._stop.wait(0.5)
