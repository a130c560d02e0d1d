"""The first process of the cluster's namespaces: prepares network and mounts, then keeps the components running.

Started by `cluster.node` as `unshare … python -m cluster.first_process FOLDER FD=NAME ...`, in process, mount, network,
UTS and IPC namespaces of its own. So its end is the end of everything: the kernel kills every process of the namespace
(containerd's shims and the pods too, which outlive containerd), and takes the mounts and the interfaces away. It has
no dependency but the standard library, and is started without the harness.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.plan import NODE, NODE_NETWORK

_MS_BIND, _MS_REC, _MS_SHARED, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 20, 2, 4
_LIBC = ctypes.CDLL(None, use_errno=True)
# kubelet sets these for the whole machine at its start, and gives up when it may not: it gets files that look like them
KERNEL_SETTINGS = (
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
)
# a component that ends is started again after this pause, doubled up to the longest
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 4.0
# running this long counts as having worked: the next pause is short again
STEADY_SECONDS = 10.0


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    done = _LIBC.mount(
        source.encode(), target.encode(), kind.encode() if kind else None, flags, data.encode() if data else None
    )
    if done != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def prepare_mounts(folder: Path) -> None:
    """Give the node its own /run and /var/log, and keep the machine's kernel settings out of its reach."""
    # sockets of shims and the pods' network namespaces lie in /run whatever one configures
    _mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    logs = folder / "data" / "var-log"
    logs.mkdir(exist_ok=True)
    _mount(str(logs), "/var/log", None, _MS_BIND)
    for number, setting in enumerate(KERNEL_SETTINGS):
        kept = folder / "data" / f"kernel-setting-{number}"
        kept.write_text(Path(setting).read_text())
        _mount(str(kept), setting, None, _MS_BIND)
    # volumes that propagate need it
    _mount("none", "/", None, _MS_SHARED | _MS_REC)


def prepare_network() -> None:
    """Bring the loopback up and put the node's address on a bridge without ports: there is no way out."""
    for command in (
        "ip link set lo up",
        "ip link add node0 type bridge",
        f"ip address add {NODE_NETWORK} dev node0",
        "ip link set node0 up",
        "ip route add default dev node0",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _LIBC.sethostname(NODE.encode(), len(NODE))


@dataclass
class Running:
    """One component and its present process."""

    name: str
    argv: list[str]
    after: str | None
    passed: tuple[int, ...] = ()
    pid: int | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    pause_seconds: float = field(default=FIRST_PAUSE_SECONDS)

    def start(self, folder: Path, environment: dict[str, str]) -> None:
        """Start it with its output appended to its log."""
        log = str(folder / "logs" / f"{self.name}.log")
        output: list[Any] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in self.passed),
        ]
        self.pid = os.posix_spawn(self.argv[0], self.argv, environment, file_actions=output, setsid=True, setsigmask=[])
        self.started_at = time.monotonic()

    def ended(self, status: int) -> None:
        """Note its end and when it is due again."""
        now = time.monotonic()
        if now - self.started_at > STEADY_SECONDS:
            self.pause_seconds = FIRST_PAUSE_SECONDS
        _say(f"{self.name} ended with {os.waitstatus_to_exitcode(status)}, again in {self.pause_seconds:g} s")
        self.pid = None
        self.due_at = now + self.pause_seconds
        self.pause_seconds = min(self.pause_seconds * 2, LONGEST_PAUSE_SECONDS)

    def is_due(self) -> bool:
        """Tell whether it should be started now."""
        if self.pid is not None or time.monotonic() < self.due_at:
            return False
        return self.after is None or os.path.exists(self.after)


def keep_running(folder: Path, running: list[Running], environment: dict[str, str]) -> None:
    """Start what is due and reap what ended, its orphans too, for ever."""
    while True:
        for one in running:
            if one.is_due():
                one.start(folder, environment)
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pid, status = 0, 0
        if pid == 0:
            # a child's end wakes it at once; what became due waits this long at most
            signal.sigtimedwait([signal.SIGCHLD], 0.25)
            continue
        for one in running:
            if one.pid == pid:
                one.ended(status)


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def _end(number: int, _frame: object) -> None:
    _say(f"ending on signal {number}")
    # the kernel does the rest: nothing of the namespace survives its first process
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Prepare the namespaces and run the components of FOLDER until a signal."""
    folder = Path(arguments[0])
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    listeners = [argument.split("=") for argument in arguments[1:]]
    for fd, _ in listeners:
        os.set_inheritable(int(fd), False)
    prepare_mounts(folder)
    prepare_network()
    listed = json.loads((folder / "config" / "components.json").read_text())
    running = [Running(one["name"], one["argv"], one["after"]) for one in listed]
    forwarder = [sys.executable, "-m", "cluster.forwarder", str(folder / "forwards"), *arguments[1:]]
    running.append(Running("forwarder", forwarder, None, passed=tuple(int(fd) for fd, _ in listeners)))
    _say(f"{len(running)} components")
    keep_running(folder, running, dict(os.environ))


if __name__ == "__main__":
    main(sys.argv[1:])
