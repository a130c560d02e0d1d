"""The process supervisor of `korrigo up`: ordered start, restart of whatever dies, clean stop.

Called by `korrigo.commands.up` with a list of `Child`; knows nothing of what they are. One thread, standard
library only: it is resident as long as the product runs, and it must outlive everything else.

Nothing gets away from it: a child dies with the supervisor (parent-death signal), a grandchild whose parent died
is adopted and ended, and should the supervisor itself be killed, a forked keeper ends what is left.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType

from korrigo import general_log, keeper, processes
from korrigo.children import Child, Phase, Running
from korrigo.home import Home
from korrigo_kit.errors import KorrigoError

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
LONG_LIFE_SECONDS = 30.0  # a child that lived so long starts its back-off anew
BOOT_FAILURES = 4  # exits (not kills) of one child before it was ever ready: then the start has failed
HOPELESS = 78  # sysexits.h EX_CONFIG: the settings are wrong, another try cannot help
ERRAND_AGAIN_SECONDS = 3600.0  # an errand that failed is tried again after this
_TICK_SECONDS = 0.05
_REST_SECONDS = 1.0
_ROTATE_SECONDS = 5.0
_OWN_LOG = "up.log"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs children until a signal says stop; `run` returns the exit code."""

    def __init__(
        self,
        home: Home,
        children: Sequence[Child],
        *,
        url: str = "",
        say: Callable[[str], None] = print,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._home = home
        self._running = {child.name: Running(child, home.logs / f"{child.name}.log") for child in children}
        self._url = url
        self._say = say
        self._on_ready = on_ready
        self._signals = 0
        self._is_ready = False
        self._failure = ""
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._rotated = time.monotonic()

    def run(self) -> int:
        """Start everything, keep it running, stop it; 0 after a stop that was asked for, 1 after a failed start."""
        processes.adopt_orphans()
        read_end = self._watch_signals()
        keeper.end_leftovers(self._home)
        self._write_state()
        keeper.start(self._home)
        with selectors.DefaultSelector() as selector:
            selector.register(read_end, selectors.EVENT_READ)
            while not self._signals and not self._failure:
                self._step()
                self._sleep(selector, read_end)
            self._stop(selector, read_end)
        self._write_state()
        if self._failure:
            with suppress(OSError):
                self._say(self._failure)
        return 1 if self._failure else 0

    # -------------------------------------------------------------------------------------- one round
    def _step(self) -> None:
        self._reap()
        for running in self._running.values():
            try:
                self._advance(running)
            except (KorrigoError, OSError, subprocess.SubprocessError) as error:
                self._note(running, str(error))
                self._count_failure(running, str(error))
                self._delay(running)
        if not self._is_ready and all(running.is_settled for running in self._running.values()):
            self._is_ready = True
            self._write_state()
            self._on_ready()
        if time.monotonic() - self._rotated > _ROTATE_SECONDS:
            self._rotated = time.monotonic()
            for running in self._running.values():
                running.rotate_log()
            for name in (general_log.NAME, _OWN_LOG):
                general_log.rotate(self._home.logs / name)

    def _advance(self, running: Running) -> None:
        now = time.monotonic()
        if running.phase is Phase.WAITING and now >= running.not_before and self._may_start(running):
            if running.child.is_due is not None and not running.child.is_due():
                return
            if running.child.is_task and running.child.is_needless():
                running.phase = Phase.DONE
                return
            running.child.before_start()
            running.spawn()
            self._write_state()
        elif running.phase is Phase.STARTING:
            if not running.child.is_task and running.child.is_ready():
                running.phase = Phase.READY
                running.was_ready = True
                self._write_state()
            elif now - running.started > running.child.start_seconds:
                self._on_late(running)

    def _on_late(self, running: Running) -> None:
        text = f"not ready within {running.child.start_seconds:g} s"
        self._note(running, text)
        if not running.was_ready:
            running.failures = BOOT_FAILURES
            self._count_failure(running, text)
        running.kill()

    def _count_failure(self, running: Running, text: str) -> None:
        """Give up when a child fails again and again before its first success; later, keep trying for ever."""
        if running.was_ready or running.child.is_due is not None:
            return
        running.failures += 1
        if running.failures >= BOOT_FAILURES and not self._failure:
            self._failure = f"{running.child.name} does not start: {text}\nThe end of {running.log}:\n{running.tail()}"

    def _may_start(self, running: Running) -> bool:
        # The order holds for the first start; a child that died later waits for nobody.
        return running.was_ready or all(self._running[name].is_settled for name in running.child.after)

    def _sleep(self, selector: selectors.BaseSelector, read_end: int) -> None:
        is_busy = any(not running.is_settled for running in self._running.values())
        if selector.select(_TICK_SECONDS if is_busy else _REST_SECONDS):
            with suppress(BlockingIOError):
                os.read(read_end, 512)

    # -------------------------------------------------------------------------------------- deaths
    def _reap(self) -> None:
        """Notice every ended child, known or adopted; an adopted one that still lives has no owner: end it."""
        has_ended = False
        while (ended := _next_ended()) is not None:
            has_ended = True
            running = next((found for found in self._running.values() if found.pid == ended), None)
            if running is None:
                with suppress(ChildProcessError):
                    os.waitpid(ended, 0)
                if ended == keeper.pid():
                    keeper.start(self._home)
                continue
            assert running.process is not None
            self._on_end(running, running.process.wait())
        if has_ended:
            self._end_orphans()

    def _on_end(self, running: Running, code: int) -> None:
        if running.phase is Phase.READY and code == -signal.SIGKILL:
            # Killed from outside (by a person, a test, for memory): no sign that the next start will fail.
            running.backoff_seconds = 0.0
        running.forget()
        if running.child.is_due is not None and running.phase is not Phase.STOPPED:
            running.phase = Phase.WAITING
            running.not_before = time.monotonic() + (ERRAND_AGAIN_SECONDS if code else 0)
            if code:
                self._note(running, f"failed with {code}; the end of its log: {running.tail()}")
        elif running.child.is_task and code == 0:
            running.phase = Phase.DONE
        elif running.phase is not Phase.STOPPED:
            text = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._note(running, text)
            if code >= 0:  # somebody's kill says nothing about the child
                running.failures += BOOT_FAILURES if code == HOPELESS else 0
                self._count_failure(running, text)
            self._delay(running)
        self._write_state()

    def _delay(self, running: Running) -> None:
        if time.monotonic() - running.started > LONG_LIFE_SECONDS:
            running.backoff_seconds = 0.0
        running.backoff_seconds = min(LONGEST_BACKOFF_SECONDS, max(FIRST_BACKOFF_SECONDS, 2 * running.backoff_seconds))
        running.phase = Phase.WAITING
        running.restarts += 1
        running.not_before = time.monotonic() + running.backoff_seconds

    def _end_orphans(self) -> None:
        known = {running.pid for running in self._running.values()} | {keeper.pid()}
        processes.send(
            (pid for pid in processes.children_of(os.getpid()) if pid not in known and processes.is_alive(pid)),
            signal.SIGKILL,
        )

    # -------------------------------------------------------------------------------------- stopping
    def _stop(self, selector: selectors.BaseSelector, read_end: int) -> None:
        """Stop in reverse order: whoever others wait for goes last. A second signal hurries everybody."""
        self._is_ready = False
        self._write_state()
        in_a_hurry = False
        asked: set[str] = set()
        for running in self._running.values():
            if running.pid is None:
                running.phase = Phase.STOPPED
        while left := [running for running in self._running.values() if running.pid is not None]:
            if self._signals > 1 and not in_a_hurry:
                in_a_hurry = True
                asked.clear()
            for running in self._free_to_stop(left):
                if running.child.name not in asked:
                    asked.add(running.child.name)
                    running.phase = Phase.STOPPED
                    running.ask_to_stop(in_a_hurry=in_a_hurry)
                elif running.kill_at is not None and time.monotonic() > running.kill_at:
                    self._note(running, "did not stop in time and was killed")
                    running.kill()
                    running.kill_at = None
            if selector.select(_TICK_SECONDS):
                with suppress(BlockingIOError):
                    os.read(read_end, 512)
            self._reap()

    def _free_to_stop(self, left: Iterable[Running]) -> list[Running]:
        needed: set[str] = set()
        asked_about = [name for running in left for name in running.child.after]
        while asked_about:  # also what is needed by way of a task that has ended long ago
            name = asked_about.pop()
            if name not in needed:
                needed.add(name)
                asked_about.extend(self._running[name].child.after)
        return [running for running in left if running.child.name not in needed]

    # -------------------------------------------------------------------------------------- signals, state
    def _watch_signals(self) -> int:
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

        def on_stop(number: int, frame: FrameType | None) -> None:
            self._signals += 1

        for number in _STOP_SIGNALS:
            # nohup means: go on when the terminal closes.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, on_stop)
        # Without a handler the kernel would not wake the selector at a child's death.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        return read_end

    def _note(self, running: Running, text: str) -> None:
        line = {  # like every other log of the product (domain.md 1.18)
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": "WARNING",
            "logger": __name__,
            "service": "supervisor",
            "message": f"{running.child.name}: {text}",
        }
        for name in (general_log.NAME, _OWN_LOG):
            general_log.append(self._home.logs / name, json.dumps(line, ensure_ascii=False))

    def _write_state(self) -> None:
        running = self._running
        self._home.write_state(
            {
                "pid": os.getpid(),
                "url": self._url,
                "started_at": self._started_at,
                "is_ready": self._is_ready,
                "children": {name: found.pid for name, found in running.items() if found.pid is not None},
                "restarts": {name: found.restarts for name, found in running.items() if found.restarts},
            }
        )


def _next_ended() -> int | None:
    """Return a child that has ended without reaping it, so that its Popen can."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return ended.si_pid if ended is not None else None
