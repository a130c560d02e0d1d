"""The owner's side of the sandbox: start the zygote, hand it runs, judge how they ended.

`room.Process` holds one `Sandbox`; flows call `run` from any thread, and runs go side by side. Nothing that comes
from a child is trusted: its result is bounded JSON, its files are plain files.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from korrigo_kit.errors import Bug, Exhausted, Unavailable
from korrigo_kit.sandbox.outcome import (
    MAX_DETAIL_BYTES,
    MAX_RESULT_BYTES,
    EngineError,
    Limits,
    SandboxCrashed,
    SandboxLimit,
    SandboxTimeout,
)

# The zygote kills at the wall time; when nothing is heard this long after it, the zygote itself hangs.
_GRACE_SECONDS = 5.0
# Imports of native engines took up to 6 s on a cold disk (reliability.md 6); a slow machine gets ten times that.
_START_SECONDS = 60.0
_LOOK_SECONDS = 1.0
# The environment holds secrets (KORRIGO_*, keys); a process that meets hostile files gets only these.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
)


class Sandbox:
    """Fork per document from a small single-threaded zygote; thread-safe, started when first used.

    `preload` names the modules that the zygote imports once, `import_paths` folders to find them in.
    Create it after a spawn, never before a fork.
    """

    def __init__(self, preload: Sequence[str], *, import_paths: Sequence[Path] = ()) -> None:
        self._preload = tuple(preload)
        self._import_paths = tuple(import_paths)
        self._lock = threading.Lock()
        self._zygote: _Zygote | None = None
        self._level: dict[str, bool | int] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, target: str, arguments: Mapping[str, Any], *, workdir: Path, limits: Limits) -> Any:
        """Call `package.module:function` as f(Path("."), **arguments) in a child whose folder is `workdir`.

        Arguments and result are JSON. Raises EngineError and its subclasses when the document is at fault;
        Unavailable SANDBOX_LOST when the zygote died meanwhile, Exhausted DISK_FULL: both worth a retry.
        """
        request = {"target": target, "arguments": dict(arguments), "limits": asdict(limits)}
        bound = _measure(workdir) + limits.output_bytes
        with _Run(json.dumps(request).encode(), workdir) as run:
            zygote = self._launch(run, limits.wall_seconds)
            try:
                run.wait(limits.wall_seconds + _GRACE_SECONDS, bound)
            except _ZygoteLost:
                self._discard(zygote)
                raise Unavailable("SANDBOX_LOST", "The processing of the document was interrupted.") from None
            result = run.result()
        if _measure(workdir) > bound:
            raise SandboxLimit("RESOURCE_LIMIT", "The document makes more output than allowed.")
        return result

    def level(self) -> dict[str, bool | int]:
        """Return the protections achieved here, measured once in a trial child; health shows it."""
        if self._level is None:
            with tempfile.TemporaryDirectory(prefix="korrigo-sandbox-") as folder:
                achieved = self.run("", {}, workdir=Path(folder), limits=Limits(wall_seconds=10.0))
            self._level = {**self._started().hello, **achieved, "limits": True, "seccomp": False}
        return dict(self._level)

    def close(self) -> None:
        """End the zygote and every run."""
        with self._lock:
            zygote, self._zygote = self._zygote, None
        if zygote:
            zygote.end()

    def _launch(self, run: _Run, wall_seconds: float) -> _Zygote:
        """Hand the run over, to a new zygote when the old one died idle (nothing was begun then)."""
        for _ in range(3):
            zygote = self._started()
            try:
                zygote.launch(run, wall_seconds)
            except OSError:
                self._discard(zygote)
            else:
                run.close_remote()
                return zygote
        raise Unavailable("SANDBOX_LOST", "The processing of documents does not start.")

    def _started(self) -> _Zygote:
        with self._lock:
            if self._zygote is None:
                self._zygote = _Zygote(self._preload, self._import_paths)
            return self._zygote

    def _discard(self, zygote: _Zygote) -> None:
        with self._lock:
            if self._zygote is zygote:
                self._zygote = None
        zygote.end()


class _ZygoteLost(Exception):
    """The zygote ended, or hangs, before it said how a run ended."""


class _Zygote:
    """The process and the socket to it."""

    def __init__(self, preload: Sequence[str], import_paths: Sequence[Path]) -> None:
        self._control, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with remote:
            argv = [sys.executable, "-P", "-m", "korrigo_kit.sandbox", "--control", str(remote.fileno())]
            argv += ["--preload", ",".join(preload)]
            for path in import_paths:
                argv += ["--path", str(path)]
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[remote.fileno()],
                cwd="/",
                env=_environment(),
            )
        self.hello: dict[str, bool | int] = self._greeted()

    def launch(self, run: _Run, wall_seconds: float) -> None:
        """Send the run's descriptors; OSError when the zygote is gone or does not listen."""
        message = json.dumps({"wall_seconds": wall_seconds}).encode()
        socket.send_fds(self._control, [message], run.remote_descriptors)

    def end(self) -> None:
        """Kill it (its children die with it) and wait."""
        self.process.kill()
        self.process.wait()
        self._control.close()

    def _greeted(self) -> dict[str, bool | int]:
        self._control.settimeout(_START_SECONDS)
        try:
            if message := self._control.recv(4096):
                self._control.settimeout(_GRACE_SECONDS)
                return dict(json.loads(message))
        except OSError:
            pass
        self.end()
        raise Bug("SANDBOX_START_FAILED", "The processing of documents cannot start.")


@dataclass(slots=True)
class _Run:
    """The sockets of one run: `talk` to the child, `noise` from it, `status` from the zygote."""

    request: bytes
    workdir: Path
    said: dict[str, Any] = field(default_factory=dict)
    exceeded: str = ""
    _sent: int = 0
    _reply: bytearray = field(default_factory=bytearray)
    _noise: bytearray = field(default_factory=bytearray)
    _local: list[socket.socket] = field(default_factory=list)
    _remote: list[int] = field(default_factory=list)

    def __enter__(self) -> _Run:
        folder = os.open(self.workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._remote.append(folder)
        for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_STREAM):
            mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
            mine.setblocking(False)
            self._local.append(mine)
            self._remote.append(theirs.detach())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without `said` (we were interrupted) the closed status socket makes the zygote kill the child.
        self.close_remote()
        for mine in self._local:
            mine.close()

    @property
    def remote_descriptors(self) -> list[int]:
        """In the order that the zygote expects: talk, noise, workdir, status."""
        folder, talk, noise, status = self._remote
        return [talk, noise, folder, status]

    def close_remote(self) -> None:
        """Close our copies of the other ends, so that their end of file reaches us."""
        while self._remote:
            os.close(self._remote.pop())

    def wait(self, seconds: float, bound: int) -> None:
        """Talk to the child until it has ended; raise _ZygoteLost when that is not told in time."""
        talk, noise, status = self._local
        end = time.monotonic() + seconds
        next_look = time.monotonic() + _LOOK_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(talk, selectors.EVENT_READ | selectors.EVENT_WRITE)
            selector.register(noise, selectors.EVENT_READ)
            selector.register(status, selectors.EVENT_READ)
            while not (self.said and talk.fileno() not in selector.get_map()):
                for key, events in selector.select(_LOOK_SECONDS):
                    self._serve(selector, key.fileobj, events)
                now = time.monotonic()
                if now > end:
                    raise _ZygoteLost
                if now > next_look:
                    next_look = now + _LOOK_SECONDS
                    if not self.said and _measure(self.workdir) > bound:
                        self._cancel("The document makes more output than allowed.")
        self._drain_noise()

    def _serve(self, selector: selectors.BaseSelector, source: Any, events: int) -> None:
        talk, noise, status = self._local
        if source is talk and events & selectors.EVENT_WRITE:
            self._send(selector)
        if not events & selectors.EVENT_READ:
            return
        try:
            data = source.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:  # reset: it died with our request unread
            data = b""
        if not data:
            selector.unregister(source)
            if source is status and not self.said:
                raise _ZygoteLost
        elif source is talk:
            self._reply += data
            if len(self._reply) > MAX_RESULT_BYTES + 1024:
                self._reply.clear()
                self._cancel("The result is too large.")
        elif source is noise:
            self._keep_noise(data)
        else:
            self.said = json.loads(data)

    def _send(self, selector: selectors.BaseSelector) -> None:
        talk = self._local[0]
        try:
            self._sent += talk.send(self.request[self._sent : self._sent + (1 << 18)])
            is_done = self._sent == len(self.request)
        except BlockingIOError:
            return
        except OSError:  # it died; its end is told by the status
            is_done = True
        if is_done:
            with contextlib.suppress(OSError):
                talk.shutdown(socket.SHUT_WR)
            selector.modify(talk, selectors.EVENT_READ)

    def _cancel(self, why: str) -> None:
        self.exceeded = self.exceeded or why
        with contextlib.suppress(OSError):
            self._local[2].shutdown(socket.SHUT_WR)

    def _keep_noise(self, data: bytes) -> None:
        self._noise += data
        del self._noise[:-MAX_DETAIL_BYTES]

    def _drain_noise(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._local[1].recv(1 << 16):
                self._keep_noise(data)

    def result(self) -> Any:
        """Return the engine's value, or raise what the end of the child means."""
        noise = self._noise.decode(errors="replace")
        if "refused" in self.said:
            raise Unavailable("SANDBOX_LOST", "No process can be started now.")
        if self.exceeded:
            raise SandboxLimit("RESOURCE_LIMIT", self.exceeded, detail=noise)
        if self.said["timed_out"]:
            raise SandboxTimeout("TIMEOUT", "The document takes longer than allowed.", detail=noise)
        code = os.waitstatus_to_exitcode(self.said["ended"])
        if code < 0:
            raise self._death(-code, noise)
        try:
            outcome = json.loads(self._reply) if code == 0 else None
        except (ValueError, RecursionError):
            outcome = None
        if not isinstance(outcome, dict):
            detail = f"exit code {code}, {len(self._reply)} bytes of result\n{noise}"
            raise SandboxCrashed("CORRUPTED_PDF", "The document ended its processing.", detail=detail)
        return _value(outcome, noise)

    def _death(self, number: int, noise: str) -> EngineError:
        detail = f"killed by signal {number}, peak {self.said['peak_kib']} KiB\n{noise}"
        if number not in _CRASHES:
            return SandboxLimit("RESOURCE_LIMIT", "The document needs more than allowed.", detail=detail)
        # PDFium and others abort when an allocation is refused, which is the document's size and no damage.
        memory = json.loads(self.request)["limits"]["memory_bytes"]
        is_out_of_memory = int(self.said["peak_kib"]) * 1024 > 0.8 * memory
        reason = "RESOURCE_LIMIT" if is_out_of_memory else "CORRUPTED_PDF"
        return SandboxCrashed(reason, "The document broke its processing.", detail=detail)


def _value(outcome: dict[str, Any], noise: str) -> Any:
    detail = f"{outcome.get('detail', '')}\n{noise}".strip()
    match outcome:
        case {"value": value}:
            return value
        case {"error": [str(reason), str(message)]}:
            raise EngineError(reason, message, detail=detail)
        case {"limit": str(message)}:
            raise SandboxLimit("RESOURCE_LIMIT", message, detail=detail)
        case {"full": True}:
            raise Exhausted("DISK_FULL", "The disk is full.", status=507)
        case {"bug": str(message)}:
            raise EngineError("ENGINE_BUG", message, detail=detail)
        case _:
            raise SandboxCrashed("CORRUPTED_PDF", "The document ended its processing.", detail=noise)


def _measure(workdir: Path) -> int:
    """Return the bytes below the workdir; anything but files and folders (a link to a secret, say) is refused."""
    total = 0
    for status in _statuses(workdir):
        if stat.S_ISREG(status.st_mode):
            total += status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            raise SandboxCrashed("CORRUPTED_PDF", "The working folder holds a link or a special file.")
    return total


def _statuses(folder: Path) -> Iterator[os.stat_result]:
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):  # removed while we looked
                yield os.lstat(os.path.join(root, name))


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # A pool of threads in the zygote would not survive a fork.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
