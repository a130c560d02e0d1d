"""Well and badly behaved engines for the tests of the sandbox; imported by its zygote, nothing else."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from korrigo_kit.sandbox import EngineError

_libc = ctypes.CDLL(None)
warmed_up = False


def warm_up() -> None:
    """Show that the zygote calls this once before it forks."""
    global warmed_up
    warmed_up = True


def echo(workdir: Path, **arguments: Any) -> Any:
    return {"arguments": arguments, "workdir": str(workdir), "files": sorted(os.listdir()), "warm": warmed_up}


def copy(workdir: Path, source: str, target: str) -> int:
    data = (workdir / source).read_bytes()
    (workdir / "sub").mkdir()
    (workdir / "sub" / "part").write_bytes(data)
    (workdir / "sub" / "part").rename(workdir / target)
    return len(data)


def refuse(workdir: Path) -> None:
    print("some noise")
    raise EngineError("ENCRYPTED", "the document wants a password", detail="deep inside")


def fail(workdir: Path) -> None:
    raise ValueError("a bug of ours")


def loop(workdir: Path) -> None:
    (workdir / "pid").write_text(str(os.getpid()))
    while True:
        pass


def sleep(workdir: Path, seconds: float) -> int:
    (workdir / "pid").write_text(str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


def stay(workdir: Path) -> None:
    """Ignore every polite signal."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sleep(workdir, 3600)


def allocate(workdir: Path, size: int) -> int:
    return len(bytes(size))


def abort_when_full(workdir: Path) -> None:
    """Do as PDFium does: abort when memory is refused."""
    kept = []
    try:
        while True:
            kept.append(bytearray(8 << 20))
    except MemoryError:
        os.abort()


def recurse(workdir: Path) -> None:
    recurse(workdir)


def write(workdir: Path, files: int, size: int) -> None:
    for number in range(files):
        (workdir / f"{number}").write_bytes(bytes(size))


def write_for_ever(workdir: Path) -> None:
    number = 0
    while True:
        (workdir / f"{number}").write_bytes(bytes(1 << 20))
        number += 1
        time.sleep(0.01)


def open_many(workdir: Path) -> None:
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(10_000)]
    assert kept


def answer(workdir: Path, size: int) -> str:
    return "x" * size


def shout(workdir: Path, size: int) -> str:
    os.write(2, b"n" * size)
    sys.stdout.write("the last words")
    return "done"


def segfault(workdir: Path) -> None:
    ctypes.string_at(0)


def die(workdir: Path, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(workdir: Path, code: int) -> None:
    os._exit(code)


def quit_politely(workdir: Path) -> None:
    sys.exit(3)


def link(workdir: Path, source: str, kind: str) -> None:
    if kind == "symbolic":
        (workdir / "link").symlink_to(source)
    elif kind == "hard":
        os.link(source, "link")
    else:
        os.mkfifo("link")


def read(workdir: Path, path: str) -> str:
    return Path(path).read_text(errors="replace")


def put(workdir: Path, path: str) -> None:
    Path(path).write_text("was here")


def signal_process(workdir: Path, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def spawn(workdir: Path) -> str:
    """Try to start a process and a thread; name what worked."""
    worked = []
    try:
        subprocess.run(["/bin/true"], check=True)
        worked.append("process")
    except OSError:
        pass
    try:
        threading.Thread(target=time.time).start()
        worked.append("thread")
    except RuntimeError:
        pass
    return ",".join(worked)


def connect(workdir: Path, port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError as error:
        return type(error).__name__
    return "connected"


def facts(workdir: Path) -> dict[str, Any]:
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "descriptors": sum(_is_open(number) for number in range(64)),
        "no_new_privileges": _libc.prctl(39, 0, 0, 0, 0),
        "secrets": [name for name in os.environ if "SECRET" in name or "KORRIGO" in name],
        "session": os.getsid(0) == os.getpid(),
    }


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
