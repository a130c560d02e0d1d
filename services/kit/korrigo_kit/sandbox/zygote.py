"""The zygote: imports the engines once, then forks a child per document; started by `owner.Sandbox`.

It stays single-threaded (a fork copies only the calling thread, so no lock can be left held) and never touches a
document, a result or a secret: each message of its owner carries four descriptors of one run, and the child talks
to the owner through them directly.

    owner ──control (seqpacket, descriptors)──▶ zygote ──fork──▶ child
      ◀───────────────────────── talk: request, result ────────────┤
      ◀───────────────────────── noise: stdout and stderr ─────────┘
      ◀──status: how the child ended──┤        (half-closed by the owner: kill the run)

It kills at the wall time, because only the parent that has not reaped yet knows the pid for sure. It ends with its
owner (end of file on control), and its children with it (parent-death signal).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import secrets
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from korrigo_kit.sandbox import child, confine

# How often to see that the owner lives when the end of file cannot reach us (a fork of it holds the socket).
_LOOK_SECONDS = 5.0
# Codecs are imported when first used, which the confined child may not be able to.
_CODECS = ("ascii", "latin_1", "cp1252", "utf_8", "utf_16", "utf_16_be", "utf_16_le", "idna", "unicode_escape")


@dataclass(slots=True)
class _Run:
    pid: int
    pidfd: int
    status: socket.socket
    deadline: float
    is_timed_out: bool = False


class Zygote:
    """The event loop: new runs, ended children, cancelled runs, passed deadlines."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._owner = os.getppid()
        self._base_bytes = _address_space_bytes()
        self._number = secrets.randbelow(1 << 16)  # the zygotes of two rooms do not count alike
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._by_pidfd: dict[int, _Run] = {}
        self._by_status: dict[int, _Run] = {}

    def serve(self) -> NoReturn:
        """Run until the owner is gone."""
        while os.getppid() == self._owner:
            for descriptor, _ in self._poll.poll(self._wait_milliseconds()):
                if descriptor == self._control.fileno():
                    if not self._accept():
                        self._end()
                elif run := self._by_pidfd.get(descriptor):
                    self._reap(run)
                elif run := self._by_status.get(descriptor):
                    self._poll.unregister(descriptor)
                    _kill(run.pid)
            self._kill_late()
        self._end()

    def _wait_milliseconds(self) -> float:
        now = time.monotonic()
        waits = [run.deadline - now for run in self._by_pidfd.values() if not run.is_timed_out]
        return max(0.0, min([_LOOK_SECONDS, *waits])) * 1000 + 1

    def _accept(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, 4096, 4)
        if not message:
            return False
        talk, noise, workdir, status = descriptors
        reply = socket.socket(fileno=status)
        self._number += 1
        work = child.Assignment(talk, noise, workdir, os.getpid(), self._number, self._base_bytes)
        try:
            pid = os.fork()
        except OSError as error:  # no process or memory left: say so, others go on
            _report(reply, {"refused": error.strerror})
            reply.close()
        else:
            if pid == 0:
                child.run(work)
            self._watch(pid, reply, json.loads(message)["wall_seconds"])
        for descriptor in work.descriptors:
            os.close(descriptor)
        return True

    def _watch(self, pid: int, status: socket.socket, wall_seconds: float) -> None:
        run = _Run(pid, os.pidfd_open(pid), status, time.monotonic() + wall_seconds)
        self._by_pidfd[run.pidfd] = run
        self._by_status[status.fileno()] = run
        self._poll.register(run.pidfd, select.POLLIN)
        self._poll.register(status, select.POLLIN)

    def _reap(self, run: _Run) -> None:
        _kill(run.pid)  # whoever is left of its group; the pid is ours until it is reaped
        _, ended, usage = os.wait4(run.pid, 0)
        with contextlib.suppress(KeyError):  # gone already when the run was cancelled
            self._poll.unregister(run.status)
        self._poll.unregister(run.pidfd)
        del self._by_pidfd[run.pidfd], self._by_status[run.status.fileno()]
        os.close(run.pidfd)
        _report(run.status, {"ended": ended, "timed_out": run.is_timed_out, "peak_kib": usage.ru_maxrss})
        run.status.close()

    def _kill_late(self) -> None:
        now = time.monotonic()
        for run in self._by_pidfd.values():
            if run.deadline <= now and not run.is_timed_out:
                run.is_timed_out = True
                _kill(run.pid)

    def _end(self) -> NoReturn:
        for run in self._by_pidfd.values():
            _kill(run.pid)
        os._exit(0)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # before its setsid it has no group of its own
        os.kill(pid, signal.SIGKILL)


def _report(status: socket.socket, said: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # the owner did not wait
        status.send(json.dumps(said).encode(), socket.MSG_DONTWAIT)


def _address_space_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def _preload(modules: list[str]) -> None:
    for codec in _CODECS:
        importlib.import_module(f"encodings.{codec}")
    for name in modules:
        module = importlib.import_module(name)
        warm_up = getattr(module, "warm_up", None)
        if callable(warm_up):
            warm_up()
    gc.collect()
    gc.freeze()  # the collector of a child must not copy every page by marking it


def main() -> NoReturn:
    """Preload, isolate the network, say hello, serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--path", action="append", default=[])
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the owner decides when to end
        signal.signal(number, signal.SIG_IGN)
    sys.path.extend(options.path)
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    _preload([name for name in options.preload.split(",") if name])
    hello = {"network": confine.isolate_network(), "single_threaded": _thread_count() == 1}
    control.send(json.dumps(hello).encode())
    Zygote(control).serve()
