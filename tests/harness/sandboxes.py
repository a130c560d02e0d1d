"""A sandbox with the test engines of `harness.sandbox_targets`, and a look at its processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from korrigo_kit.sandbox import Limits, Sandbox

TESTS = Path(__file__).resolve().parents[1]
TARGETS = "harness.sandbox_targets"
LIMITS = Limits(wall_seconds=20, cpu_seconds=20, memory_bytes=256 << 20, output_bytes=8 << 20)


def open_sandbox() -> Sandbox:
    """Make a sandbox that knows the test engines."""
    return Sandbox([TARGETS], import_paths=[TESTS])


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def pid_in(folder: Path) -> int:
    def read() -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((folder / "pid").read_text())
        return 0

    return int(wait_until(read))


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def zygote_of(sandbox: Sandbox) -> int:
    assert sandbox._zygote is not None
    return sandbox._zygote.process.pid


def run(sandbox: Sandbox, name: str, workdir: Path, limits: Limits = LIMITS, **arguments: Any) -> Any:
    return sandbox.run(f"{TARGETS}:{name}", arguments, workdir=workdir, limits=limits)
