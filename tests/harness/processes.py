"""Child processes, ports and waiting for the tests: everything the harness starts goes through here.

Called by `harness.servers` and `harness.instance`. A child is killed when the test process dies, so that an
interrupted run leaves no server behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from korrigo.drills.patience import crowding

T = TypeVar("T")

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_given_ports: set[int] = set()
# PDEATHSIG fires when the *thread* that forked ends: fork everything from one that lives as long as we do
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


class NotReady(AssertionError):
    """Something did not become true before its deadline."""


def free_port() -> int:
    """Return a loopback TCP port that is free now and was not handed out before in this process."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given_ports:
            _given_ports.add(port)
            return port


def wait_for(what: str, check: Callable[[], T | None], *, seconds: float, every_seconds: float = 0.1) -> T:
    """Poll `check` until it returns something true; its exceptions count as "not yet".

    Raises NotReady with the last exception or value when `seconds` have passed; more of them on a crowded machine,
    because what a test waits for is hardly ever how fast it comes.
    """
    began = time.monotonic()
    last: object = None
    while True:
        try:
            found = check()
            if found:
                return found
            last = found
        except NotReady:
            raise
        except Exception as error:
            last = error
        if time.monotonic() - began > seconds * crowding():
            raise NotReady(f"{what}: not within {seconds:g} s (last: {last!r})")
        time.sleep(every_seconds)


def listens(port: int) -> bool:
    """Tell whether something accepts connections on this loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def unprivileged_user() -> str | None:
    """Name the account servers that refuse root are run as; None when we are not root."""
    return "nobody" if os.geteuid() == 0 else None


def server_folder(name: str, user: str | None) -> Path:
    """Make a temporary folder that `user` owns; not below pytest's, which only root can enter."""
    folder = Path(tempfile.mkdtemp(prefix=f"korrigo-test-{name}-"))
    if user is not None:
        shutil.chown(folder, user)
    return folder


def clean_environment() -> dict[str, str]:
    """Return this process's environment without KORRIGO_* and pytest's own variables."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("KORRIGO_", "PYTEST_"))}


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants(pid: int) -> list[psutil.Process]:
    """List the living descendants of a process, parents first; none when it is gone."""
    try:
        return [p for p in psutil.Process(pid).children(recursive=True) if is_alive(p.pid)]
    except psutil.NoSuchProcess:
        return []


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill_hard(pid: int) -> bool:
    """SIGKILL one process; False when it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Child:
    """One child process with its output in a file."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    user: str | None = None
    cwd: Path | None = None
    # file descriptors that it inherits under the same numbers
    pass_fds: Sequence[int] = ()
    # a cluster that `make cluster` leaves running outlives the command; everything else dies with us
    outlives_us: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it in a session of its own; output is appended to the log."""
        self.process = _SPAWNER.submit(self._spawn).result()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            return subprocess.Popen(
                list(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                cwd=self.cwd or self.log.parent,
                start_new_session=True,
                user=self.user,
                group=None if self.user is None else _group_of(self.user),
                extra_groups=None if self.user is None else [],
                pass_fds=self.pass_fds,
                preexec_fn=None if self.outlives_us else _die_with_parent,
            )

    @property
    def pid(self) -> int:
        """The process id; AssertionError before start."""
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def is_running(self) -> bool:
        """Tell whether it runs (and reap it when it does not)."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL it and whatever it started, and reap it."""
        if self.process is None:
            return
        family = descendants(self.pid)
        kill_hard(self.pid)
        for member in family:
            kill_hard(member.pid)
        self.process.wait(30)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30) -> int:
        """Send a signal, wait, return the exit code; kill it and raise NotReady when it does not end."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NotReady(f"{self.name} did not end within {seconds:g} s of {number.name}\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        """Return the end of its output."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _group_of(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
