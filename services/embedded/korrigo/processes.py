"""What the front door asks the kernel about processes: who lives, whose child it is, who dies with whom.

Called by the supervisor and by the PostgreSQL part. Only the standard library: these modules are resident as
long as the product runs. Linux gives everything through /proc; elsewhere the answers are empty and the
supervisor falls back on what waitpid tells.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

try:
    _prctl: Callable[..., int] | None = ctypes.CDLL(None, use_errno=True).prctl
except (AttributeError, OSError):  # not Linux: no parent-death signal, no subreaper
    _prctl = None


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that identify a process; `started_ticks` counts from boot."""

    pid: int
    command: str
    state: str
    parent: int
    session: int
    started_ticks: int


def stat(pid: int) -> Stat | None:
    """Read one process; None when it is gone (or when there is no /proc)."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command may contain spaces and brackets: the last ")" ends it (proc(5)).
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    command = head.partition("(")[2]
    return Stat(pid, command, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def every() -> Iterator[Stat]:
    """List the processes that can be seen."""
    with suppress(FileNotFoundError):
        for entry in os.listdir(PROC):
            if entry.isdigit() and (found := stat(int(entry))) is not None:
                yield found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    found = stat(pid)
    return found is not None and found.state not in "ZX"


def in_session(session: int) -> list[int]:
    """List the living processes of a session (every supervised child leads its own)."""
    return [found.pid for found in every() if found.session == session and found.state not in "ZX"]


def children_of(parent: int) -> list[int]:
    """List direct children, zombies included."""
    return [found.pid for found in every() if found.parent == parent]


def working_in(folder: Path) -> list[int]:
    """List the processes whose working directory is `folder`; every PostgreSQL process works in its data."""
    wanted = os.path.realpath(folder)
    found = []
    for process in every():
        with suppress(OSError):
            if process.state not in "ZX" and os.readlink(PROC / str(process.pid) / "cwd") == wanted:
                found.append(process.pid)
    return found


def environment_of(pid: int) -> dict[str, str]:
    """Read the environment a process was started with; empty when it may not be read."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.decode(errors="replace").partition("=") for item in raw.split(b"\0") if item)
    return {name: value for name, _, value in pairs}


def send(pids: Iterable[int], signal_number: int) -> None:
    """Signal processes; one that is gone meanwhile is no error."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal_number)


def end(find: Callable[[], list[int]], signals: Iterable[tuple[int, float]]) -> list[int]:
    """End what `find` finds, by signals of growing force, each with its patience in seconds; return the rest."""
    rest = find()
    for signal_number, patience_seconds in signals:
        deadline = time.monotonic() + patience_seconds
        send(rest, signal_number)
        while rest and time.monotonic() < deadline:
            _reap_adopted(rest)
            time.sleep(0.01)
            rest = find()
        if not rest:
            break
    return rest


def _reap_adopted(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def adopt_orphans() -> None:
    """Make this process the parent of any descendant whose own parent dies, so that none gets away."""
    if _prctl is not None:
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when `parent` dies; call between fork and exec, after setuid.

    The kernel forgets the wish when the user id changes, hence the order. The second look closes the race of a
    parent that died before the wish was made.
    """
    if _prctl is None:
        return
    _prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(125)
