"""One supervised child: what it is, and the process that runs for it now.

Every child leads a session of its own, so that a signal to the whole process group of `korrigo up` reaches only
the supervisor, and so that everything a child started can be found by its session. Its output goes straight into
a file: nobody has to read it, so it can never block.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from korrigo import processes
from korrigo.privileges import User

LOG_BYTES = 10 * 1024 * 1024  # 10 files of 10 MB per child (domain.md 1.18)
LOG_FILES = 10


def _nothing() -> None:
    return None


def _never() -> bool:
    return False


def _at_once() -> bool:
    return True


@dataclass(frozen=True)
class Child:
    """A child as it should be.

    `after`: names of children that must be ready first. `is_task`: runs once, must exit 0. `is_needless`: asked
    when a task's turn comes; true skips it. `is_due`: makes it an errand, started whenever this is true and nobody's
    to wait for; asked again and again, so it must answer at once. `before_start` may block for a moment and may
    raise; the start is then tried again.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    after: tuple[str, ...] = ()
    is_ready: Callable[[], bool] = _at_once
    is_needless: Callable[[], bool] = _never
    is_due: Callable[[], bool] | None = None
    before_start: Callable[[], None] = _nothing
    is_task: bool = False
    start_seconds: float = 90.0
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 15.0
    hurry_signal: int = signal.SIGKILL
    death_signal: int = signal.SIGKILL
    user: User | None = None
    folder: Path = Path("/")


class Phase(Enum):
    """Where a child is.

    WAITING ──► STARTING ──► READY            (DONE for a task that exited 0 or was needless)
       ▲            │           │
       └─ back-off ─┴───────────┴──► STOPPED  (only once the supervisor stops)
    """

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    STOPPED = "stopped"


@dataclass
class Running:
    """A child as it is now; all times are of the monotonic clock."""

    child: Child
    log: Path
    phase: Phase = Phase.WAITING
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    not_before: float = 0.0
    backoff_seconds: float = 0.0
    restarts: int = 0
    failures: int = 0
    was_ready: bool = False
    kill_at: float | None = field(default=None)

    @property
    def pid(self) -> int | None:
        """Id of the living process."""
        return self.process.pid if self.process is not None else None

    @property
    def is_settled(self) -> bool:
        """Tell whether whatever comes after this one may start."""
        return self.phase in (Phase.READY, Phase.DONE) or self.child.is_due is not None

    def spawn(self) -> None:
        """Start the process; it is told to die with this one. Call from the main thread only.

        The kernel's parent-death signal follows the *thread* that forked, and a forked interpreter with other
        threads may hang; so the supervisor has no second thread.
        """
        parent, death_signal, user = os.getpid(), self.child.death_signal, self.child.user
        is_dropped = user is not None and user.is_dropped
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.child.argv,
                env=dict(self.child.env),
                cwd=self.child.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user.user_id if user is not None and is_dropped else None,
                group=user.group_id if user is not None and is_dropped else None,
                extra_groups=[] if is_dropped else None,
                preexec_fn=lambda: processes.die_with_parent(parent, death_signal),
            )
        self.started = time.monotonic()
        self.phase = Phase.STARTING

    def forget(self) -> None:
        """Note that the process has ended, and end whatever it left in its session."""
        if self.process is not None:
            processes.end(lambda session=self.process.pid: processes.in_session(session), _REMNANTS)  # type: ignore[misc]
        self.process = None
        self.kill_at = None

    def ask_to_stop(self, *, in_a_hurry: bool) -> None:
        """Send the stop signal, or the one for the impatient."""
        if self.process is not None:
            child = self.child
            with suppress(ProcessLookupError):
                self.process.send_signal(child.hurry_signal if in_a_hurry else child.stop_signal)
            self.kill_at = time.monotonic() + (3.0 if in_a_hurry else child.stop_seconds)

    def kill(self) -> None:
        """End the whole session at once."""
        if self.process is not None:
            processes.send({self.process.pid, *processes.in_session(self.process.pid)}, signal.SIGKILL)

    def rotate_log(self) -> None:
        """Keep the log small: its end is copied away and it is cut, because the child holds it open for appending.

        What a child writes during the copy is lost; a child that floods its log loses the older part too.
        """
        with suppress(OSError):
            size = self.log.stat().st_size
            if size < LOG_BYTES:
                return
            for number in range(LOG_FILES - 1, 1, -1):
                older = self.log.with_name(f"{self.log.name}.{number - 1}")
                if older.exists():
                    older.replace(self.log.with_name(f"{self.log.name}.{number}"))
            with self.log.open("rb") as source:
                source.seek(size - LOG_BYTES)
                copy = self.log.with_name(f".{self.log.name}.copy")
                copy.write_bytes(source.read(LOG_BYTES))
            copy.replace(self.log.with_name(f"{self.log.name}.1"))
            os.truncate(self.log, 0)

    def tail(self, lines: int = 12) -> str:
        """Return the end of the log, for a person whose start failed."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        return ""


_REMNANTS = ((signal.SIGKILL, 2.0),)
