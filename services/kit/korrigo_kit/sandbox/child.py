"""The life of one forked child: confine itself, call the engine, send a JSON result, end.

Called by the zygote right after its fork; never returns. Everything here is trusted until the engine's function
is called, and nothing that comes back from it is.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from korrigo_kit.sandbox.confine import confine
from korrigo_kit.sandbox.outcome import MAX_DETAIL_BYTES, MAX_RESULT_BYTES, EngineError, Limits

_LIMIT = b'{"limit": "The document needs more memory than allowed."}'


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the zygote hands to its fork: descriptors, its own pid and address space, the number of the run."""

    talk: int
    noise: int
    workdir: int
    zygote: int
    number: int
    base_bytes: int

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """The descriptors that the child needs."""
        return self.talk, self.noise, self.workdir


def run(assignment: Assignment) -> NoReturn:
    """Do one run in this process and end it: exit code 0 exactly when a whole result was sent."""
    code = 1
    try:
        os.setsid()
        _restore_signals()
        _redirect(assignment.noise)
        _close_all_but({0, 1, 2, assignment.talk, assignment.workdir})
        with socket.socket(fileno=assignment.talk) as talk:
            request = json.loads(_receive(talk))
            talk.sendall(_outcome(assignment, request))
        code = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _outcome(assignment: Assignment, request: dict[str, Any]) -> bytes:
    try:
        function = load(request["target"])
        level = confine(
            assignment.workdir,
            assignment.number,
            Limits(**request["limits"]),
            assignment.base_bytes,
            assignment.zygote,
        )
        os.close(assignment.workdir)
        os.umask(0o022)  # the owner reads what the engine leaves
        os.environ["TMPDIR"] = "."
        value = level if function is None else function(Path("."), **request["arguments"])
        result = json.dumps({"value": value}).encode()
        if len(result) > MAX_RESULT_BYTES:
            return json.dumps({"limit": "The result is too large."}).encode()
        return result
    except EngineError as error:
        return _say(error=[error.reason, error.message], detail=error.detail)
    except MemoryError:
        return _LIMIT
    except RecursionError:
        return _say(limit="The document is nested too deeply.", detail=_trace())
    except OSError as error:
        return _of_system(error)
    except BaseException as error:
        return _say(bug=f"{type(error).__name__}: {error}"[:300], detail=_trace())


def load(target: str) -> Callable[..., Any] | None:
    """Import `package.module:function`; the empty target asks for the protections only."""
    if not target:
        return None
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{target} is not a function")
    return function  # type: ignore[no-any-return]


def _of_system(error: OSError) -> bytes:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _say(full=True)
    if error.errno in {errno.EFBIG, errno.EMFILE, errno.ENOMEM}:
        return _say(limit="The document needs more files, bytes or memory than allowed.", detail=_trace())
    return _say(bug=f"{type(error).__name__}: {os.strerror(error.errno or 0)}", detail=_trace())


def _say(**outcome: object) -> bytes:
    return json.dumps(outcome).encode()


def _trace() -> str:
    return traceback.format_exc()[-MAX_DETAIL_BYTES:]


def _receive(talk: socket.socket) -> bytes:
    pieces: list[bytes] = []
    while piece := talk.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def _restore_signals() -> None:
    # Python ignores SIGXFSZ and SIGPIPE, the zygote the polite ones; native code must die of the first.
    for number in (signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _redirect(noise: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    faulthandler.enable(file=2)  # a native crash says where it was


def _close_all_but(keep: Iterable[int]) -> None:
    start = 0
    for descriptor in (*sorted(keep), 1 << 20):
        if start < descriptor:  # closerange(0, 0) would close everything
            os.closerange(start, descriptor)
        start = descriptor + 1
