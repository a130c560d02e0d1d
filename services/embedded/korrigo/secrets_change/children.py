"""Ending children of `korrigo up`, one after another; its supervisor starts them with what is new.

A child that is told to end finishes what it does; a worker that takes too long is killed, which its leases and the
sweeper make harmless.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from korrigo import processes
from korrigo.home import Home
from korrigo_kit.errors import Timeout

_PATIENCE_SECONDS = 45.0
_START_SECONDS = 120.0


def restart(home: Home, names: Sequence[str]) -> None:
    """End each of these children and wait until the one in its place is ready; raises Timeout (CHILD_NOT_BACK)."""
    for name in names:
        old = _pid(home, name)
        if old is None:
            continue
        with suppress(ProcessLookupError):
            os.kill(old, signal.SIGTERM)
        _await_end(old)
        _await_successor(home, name, old)


def _pid(home: Home, name: str) -> int | None:
    found = (home.state() or {}).get("children", {}).get(name)
    return int(found) if found else None


def _await_end(pid: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while processes.is_alive(pid):
        if time.monotonic() > deadline:
            processes.send({pid, *processes.in_session(pid)}, signal.SIGKILL)
            return
        time.sleep(0.05)


def _await_successor(home: Home, name: str, old: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    ready_file = home.run / f"{name}.ready"
    while True:
        pid = _pid(home, name)
        # The supervisor removes the file before it starts the next one.
        if pid not in (None, old) and ready_file.exists():
            return
        if time.monotonic() > deadline:
            raise Timeout("CHILD_NOT_BACK", f"{name} was ended and is not ready after {_START_SECONDS:.0f} s")
        time.sleep(0.1)
