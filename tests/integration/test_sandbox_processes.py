"""The sandbox from the outside: runs side by side, and what happens when one of the processes dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from harness.sandboxes import TARGETS, TESTS, is_alive, open_sandbox, pid_in, run, wait_until, zygote_of
from korrigo_kit.errors import Bug, Unavailable
from korrigo_kit.sandbox import EngineError, Limits, Sandbox, SandboxCrashed, SandboxTimeout


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox() as opened:
        yield opened


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_eight_threads_run_side_by_side(sandbox: Sandbox, tmp_path: Path) -> None:
    def task(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        for turn in range(6):
            kind = (number + turn) % 4
            if kind == 0:
                assert run(sandbox, "echo", folder, n=number)["arguments"] == {"n": number}
            elif kind == 1:
                with pytest.raises(SandboxCrashed):
                    run(sandbox, "segfault", folder)
            elif kind == 2:
                with pytest.raises(SandboxTimeout):
                    run(sandbox, "sleep", folder, Limits(wall_seconds=0.3), seconds=60)
            else:
                with pytest.raises(EngineError, match="ENCRYPTED"):
                    run(sandbox, "refuse", folder)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(task, range(8)))
    folders = [tmp_path / f"s{number}" for number in range(8)]
    for folder in folders:
        folder.mkdir()
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        pids = list(pool.map(lambda folder: run(sandbox, "sleep", folder, seconds=1.0), folders))
    assert len(set(pids)) == 8
    assert time.monotonic() - started < 4.0


def test_a_killed_zygote_is_replaced_and_the_run_in_flight_may_be_retried(sandbox: Sandbox, work: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, sandbox, "sleep", work, seconds=60)
        child, zygote = pid_in(work), zygote_of(sandbox)
        os.kill(zygote, signal.SIGKILL)
        with pytest.raises(Unavailable, match="SANDBOX_LOST"):
            future.result(timeout=10)
    wait_until(lambda: not is_alive(child))
    assert run(sandbox, "echo", work)["warm"] is True
    assert zygote_of(sandbox) != zygote


def test_a_zygote_that_died_idle_is_replaced_unnoticed(sandbox: Sandbox, work: Path) -> None:
    run(sandbox, "echo", work)
    zygote = zygote_of(sandbox)
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: not is_alive(zygote))
    assert run(sandbox, "echo", work)["warm"] is True


def test_a_hanging_zygote_is_replaced(sandbox: Sandbox, work: Path) -> None:
    run(sandbox, "echo", work)
    os.kill(zygote_of(sandbox), signal.SIGSTOP)
    with pytest.raises(Unavailable, match="SANDBOX_LOST"):
        run(sandbox, "echo", work, Limits(wall_seconds=0.5))
    assert run(sandbox, "echo", work)["warm"] is True


def test_the_death_of_the_owner_ends_zygote_and_children(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    code = f"""
import pathlib
from korrigo_kit.sandbox import *
Sandbox([{TARGETS!r}], import_paths=[pathlib.Path({str(TESTS)!r})]).run(
    {TARGETS!r} + ":stay", {{}}, workdir=pathlib.Path({str(work)!r}), limits=Limits(wall_seconds=600))
"""
    owner = subprocess.Popen([sys.executable, "-c", code])
    child = pid_in(work)
    zygote = psutil.Process(child).ppid()
    assert psutil.Process(zygote).ppid() == owner.pid
    owner.kill()
    owner.wait()
    wait_until(lambda: not is_alive(zygote) and not is_alive(child))


def test_closing_ends_the_runs(work: Path) -> None:
    sandbox = open_sandbox()
    failures: list[BaseException] = []

    def task() -> None:
        try:
            run(sandbox, "stay", work)
        except Unavailable as error:
            failures.append(error)

    thread = threading.Thread(target=task)
    thread.start()
    child, zygote = pid_in(work), zygote_of(sandbox)
    sandbox.close()
    thread.join(timeout=10)
    assert [str(error)[:12] for error in failures] == ["SANDBOX_LOST"]
    wait_until(lambda: not is_alive(zygote) and not is_alive(child))
    sandbox.close()


def test_a_module_that_cannot_be_imported_is_told_at_the_start(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Sandbox(["no_such_engine"]) as sandbox, pytest.raises(Bug, match="SANDBOX_START_FAILED"):
        run(sandbox, "echo", work)
    assert "no_such_engine" in capfd.readouterr().err


def test_no_descriptor_and_no_process_is_left_after_200_runs(sandbox: Sandbox, work: Path) -> None:
    def counts() -> tuple[int, int, int]:
        zygote = zygote_of(sandbox)
        folder = Path("/proc")
        return (
            len(os.listdir(folder / "self" / "fd")),
            len(os.listdir(folder / str(zygote) / "fd")),
            len(psutil.Process(zygote).children()),
        )

    names = ("echo", "refuse", "segfault", "fail")
    for name in names:
        with contextlib.suppress(EngineError):
            run(sandbox, name, work)
    before = counts()
    for number in range(200):
        with contextlib.suppress(EngineError):
            run(sandbox, names[number % 4], work)
    # Polled, because the zygote closes its end just after we hear of the end of a run.
    wait_until(lambda: all(now <= then for now, then in zip(counts(), before, strict=True)))
