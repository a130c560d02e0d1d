"""What remains to be done when the supervisor itself was killed: end everything that it had started.

Children get a parent-death signal from the kernel, but their own children (a worker's pool, a sandbox) do not.
The keeper is a fork of the supervisor that sleeps on a pipe; when the pipe breaks it ends every session that
`run/state.json` names. The next start does the same again, should the keeper have been killed too.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from korrigo import processes
from korrigo.home import Home

_POSTGRES = "postgres"  # ends by its own rules: korrigo.postgres
_pid: int | None = None


def pid() -> int | None:
    """Id of this supervisor's keeper."""
    return _pid


def start(home: Home) -> None:
    """Fork the keeper; it ends when the supervisor ends, however that happens."""
    global _pid
    supervisor = os.getpid()
    read_end, _kept_open = os.pipe()  # the write end stays open, in this process alone, until it ends
    _pid = os.fork()
    if _pid:
        os.close(read_end)
        return
    try:
        _keep(home, supervisor, read_end)
    finally:
        os._exit(0)


def _keep(home: Home, supervisor: int, read_end: int) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Above all: no copy of the write end, of the home's lock, of the caller's output.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, read_end)
    os.closerange(read_end + 1, 4096)
    with suppress(OSError):
        os.read(read_end, 1)
    state = home.state()
    if state is not None and state.get("pid") == supervisor:
        end_leftovers(home)


def end_leftovers(home: Home) -> None:
    """End the sessions of children that an earlier supervisor of this home has left behind."""
    state = home.state() or {}
    children = state.get("children", {})
    sessions = {int(number) for name, number in children.items() if name != _POSTGRES}

    def left() -> list[int]:
        # A session's number is not given away while a member lives; a new holder belongs to no home of ours.
        wanted = str(home.root)
        found = (member for session in sessions for member in processes.in_session(session))
        return [member for member in found if processes.environment_of(member).get("KORRIGO_HOME") == wanted]

    processes.end(left, ((signal.SIGKILL, 5.0),))
