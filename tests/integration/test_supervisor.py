"""The supervisor with real children: order, restart, back-off, stop, group signals, its own death."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.processes import Child, clean_environment, is_alive, kill_hard, wait_for
from korrigo.children import LOG_BYTES
from korrigo.home import Home

# A child that notes its start and its end, becomes ready by a file, and has a child of its own.
CHILD = """
import os, signal, subprocess, sys, time
name, folder, mode = sys.argv[1:4]
def note(word):
    with open(f"{folder}/story", "a") as file:
        file.write(f"{word} {name}\\n")
def stop(number, frame):
    note("stops")
    if "helper" in globals(): helper.kill(); helper.wait()
    time.sleep(0.2)
    note("stopped")
    sys.exit(0)
note("starts")
if mode == "fail": sys.exit(3)
if mode == "task": time.sleep(0.2); note("done"); sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else stop)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(f"{folder}/{name}.helper", "w").write(str(helper.pid))
time.sleep(0.3)
note("ready")
open(f"{folder}/{name}.ready", "w").close()
while mode == "talk": print("x" * 10000, flush=True); time.sleep(0.002)
while True: time.sleep(60)
"""

# children: name, mode, after
PROGRAM = """
import json, os, resource, sys
from pathlib import Path
from korrigo.children import Child
from korrigo.home import Home
from korrigo.supervisor import Supervisor
folder, script, plan = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
home = Home(folder)
home.prepare()
lock = home.lock()
def child(name, mode, after):
    ready = folder / f"{name}.ready"
    return Child(
        name=name, argv=(sys.executable, "-c", script, name, str(folder), mode),
        env=dict(os.environ) | {"KORRIGO_HOME": str(folder)}, after=tuple(after), is_task=mode == "task",
        is_ready=ready.exists, before_start=lambda: ready.unlink(missing_ok=True), stop_seconds=1.0,
    )
raise SystemExit(Supervisor(home, [child(*spec) for spec in plan], on_ready=lambda: print("ready", flush=True)).run())
"""
Plan = list[tuple[str, str, list[str]]]
CHAIN: Plan = [("second", "serve", ["task"]), ("task", "task", ["first"]), ("first", "serve", [])]


class Run:
    """One supervisor over a plan of children."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        argv = [sys.executable, "-c", PROGRAM, str(folder), CHILD, json.dumps(plan)]
        self.child = Child("supervisor", argv, folder.with_name("up.out"), clean_environment())
        self.child.start()

    @property
    def pid(self) -> int:
        return self.child.pid

    def state(self) -> dict[str, Any]:
        return Home(self.folder).state() or {}

    def pids(self) -> dict[str, int]:
        return dict(self.state().get("children", {}))

    def helper(self, name: str) -> int:
        return int((self.folder / f"{name}.helper").read_text())

    def story(self) -> list[str]:
        story = self.folder / "story"
        return story.read_text().splitlines() if story.exists() else []

    def wait_ready(self) -> None:
        wait_for("readiness", lambda: "ready" in self.child.log.read_text().split(), seconds=30, every_seconds=0.02)

    def everybody(self) -> list[int]:
        return [*self.pids().values(), *(self.helper(name) for name in self.pids())]


Start = Callable[[Plan], Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs: list[Run] = []

    def begin(plan: Plan) -> Run:
        runs.append(Run(tmp_path / "home", plan))
        return runs[-1]

    yield begin
    for run in runs:
        run.child.stop(seconds=30)


def test_children_start_in_order_and_stop_in_reverse(start: Start) -> None:
    run = start(CHAIN)
    run.wait_ready()
    assert run.state()["is_ready"] is True
    assert set(run.pids()) == {"first", "second"}
    everybody = run.everybody()
    assert run.child.stop(signal.SIGTERM) == 0
    assert run.story() == [
        "starts first", "ready first", "starts task", "done task", "starts second", "ready second",
        "stops second", "stopped second", "stops first", "stopped first",
    ]  # fmt: skip
    assert not [pid for pid in everybody if is_alive(pid)]
    assert run.pids() == {}


def test_a_child_that_dies_is_started_again_alone_and_its_orphans_are_ended(start: Start) -> None:
    run = start(CHAIN)
    run.wait_ready()
    before, helper = run.pids(), run.helper("first")
    kill_hard(before["first"])
    wait_for("a new first", lambda: run.pids().get("first") not in (None, before["first"]), seconds=10)
    after = run.pids()
    assert after["second"] == before["second"]
    assert run.state()["restarts"] == {"first": 1}
    wait_for("the orphan's end", lambda: not is_alive(helper), seconds=5)
    wait_for("readiness of the new one", lambda: run.story().count("ready first") == 2, seconds=10)


def test_a_child_that_never_starts_ends_the_whole_with_its_own_words(start: Start) -> None:
    run = start([("first", "serve", []), ("broken", "fail", ["first"])])
    wait_for("the end", lambda: not run.child.is_running(), seconds=30)
    assert run.child.process is not None
    assert run.child.process.returncode == 1
    assert "broken does not start: ended with exit code 3" in run.child.tail()
    # The waits between the attempts grow: 0.2 + 0.4 + 0.8 s lie between the four.
    assert run.story().count("starts broken") == 4
    assert run.story()[-1] == "stopped first"


def test_a_stubborn_child_is_killed_with_all_it_started(start: Start) -> None:
    run = start([("mule", "stubborn", [])])
    run.wait_ready()
    everybody = run.everybody()
    begun = time.monotonic()
    assert run.child.stop(signal.SIGINT) == 0
    assert 0.9 < time.monotonic() - begun < 8
    assert not [pid for pid in everybody if is_alive(pid)]


def test_a_second_signal_does_not_wait(start: Start) -> None:
    run = start([("mule", "stubborn", [])])
    run.wait_ready()
    os.kill(run.pid, signal.SIGINT)
    wait_for("the stop", lambda: not run.state()["is_ready"], seconds=1, every_seconds=0.01)
    begun = time.monotonic()
    os.kill(run.pid, signal.SIGINT)
    wait_for("the end", lambda: not run.child.is_running(), seconds=10, every_seconds=0.01)
    assert time.monotonic() - begun < 0.8


def test_a_signal_to_the_whole_group_stops_as_cleanly(start: Start) -> None:
    run = start(CHAIN)
    run.wait_ready()
    os.killpg(os.getpgid(run.pid), signal.SIGINT)
    wait_for("the end", lambda: not run.child.is_running(), seconds=20)
    assert run.child.process is not None
    assert run.child.process.returncode == 0
    assert run.story()[-4:] == ["stops second", "stopped second", "stops first", "stopped first"]


@pytest.mark.parametrize("with_keeper", [True, False], ids=["keeper alive", "keeper killed first"])
def test_a_kill_of_the_supervisor_leaves_nothing_and_the_next_start_works(start: Start, with_keeper: bool) -> None:
    run = start(CHAIN)
    run.wait_ready()
    everybody = run.everybody()
    if not with_keeper:
        for process in psutil.Process(run.pid).children(recursive=True):
            if process.pid not in everybody:
                os.kill(run.pid, signal.SIGSTOP)  # else it would fork another one
                process.kill()
    kill_hard(run.pid)
    if with_keeper:
        wait_for("the end of everybody", lambda: not [pid for pid in everybody if is_alive(pid)], seconds=10)
    run.child.kill()
    (run.folder / "story").unlink()
    run.child.log.unlink()
    again = start(CHAIN)
    again.wait_ready()
    assert not [pid for pid in everybody if is_alive(pid)]
    assert again.story()[-1] == "ready second"


def test_output_never_blocks_and_logs_stay_small(start: Start) -> None:
    run = start([("talker", "talk", [])])
    run.wait_ready()
    log = run.folder / "logs" / "talker.log"
    wait_for("a rotated log", lambda: log.with_name("talker.log.1").exists(), seconds=60)
    assert log.with_name("talker.log.1").stat().st_size == LOG_BYTES
    assert is_alive(run.pids()["talker"])


def test_the_general_log_is_rotated_by_its_name(start: Start) -> None:
    """Whoever has it open goes on in the older file until the next line, so nothing is cut away."""
    run = start(CHAIN)
    run.wait_ready()
    general = run.folder / "logs" / "django.log"
    with general.open("ab") as file:
        file.truncate(LOG_BYTES)
        wait_for("the older file", lambda: general.with_name("django.log.1").exists(), seconds=30)
        file.write(b"written meanwhile")
    assert general.with_name("django.log.1").read_bytes().endswith(b"written meanwhile")
    assert not general.exists()


def test_the_supervisor_stays_small_and_idle(start: Start) -> None:
    run = start(CHAIN)
    run.wait_ready()
    process = psutil.Process(run.pid)
    before = sum(process.cpu_times()[:2])
    deadline = time.monotonic() + 3
    wait_for("three seconds", lambda: time.monotonic() > deadline, seconds=5)
    spent = sum(process.cpu_times()[:2]) - before
    print(f"supervisor: {process.memory_info().rss >> 20} MB resident, {spent:.2f} s of CPU in 3 s")
    assert process.memory_info().rss < 45 << 20
    assert spent < 0.3
