"""Runs a command in an image's root file system the way a hardened pod does, without a container runtime.

Read-only root (an overlay of the image's layers), an empty /tmp, uid 10001, no capability, no new privileges, processes
of its own (the command is number 1), the network of this machine so that it reaches the tests' servers. Used as a
program by `harness.production_images`; what is set up ends with the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

USER = 10001
_libc = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_IPC, _NEW_PIDS = 0x0002_0000, 0x0800_0000, 0x2000_0000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_LAST_CAPABILITY = 40
_DEVICES = ("null", "zero", "full", "random", "urandom")


def unpack_layers(archive: Path, folder: Path) -> None:
    """Unpack every layer of an OCI archive once, below its digest; layers take nothing away from each other."""
    with tarfile.open(archive) as tar:
        for blob in tar.getmembers():
            content = tar.extractfile(blob)
            if content is None or blob.size < 512 or content.read(1) in (b"{", b""):
                continue
            content.seek(0)
            target = folder / blob.name.rpartition("/")[2]
            target.mkdir()
            with tarfile.open(fileobj=content) as files:
                for entry in files:
                    name = entry.name.rpartition("/")[2]
                    # the build's own mount point, which it takes away after each step
                    assert name == ".wh.mnt" or not name.startswith(".wh."), f"{entry.name} removes a file"
                    if not entry.isdev() and name != ".wh.mnt":
                        files.extract(entry, target, filter="fully_trusted")


def command(layers: Sequence[Path], scratch: Path, *argv: str) -> list[str]:
    """Return the command line that runs `argv` on these layers, lowest first; `scratch` is an empty folder."""
    stack = ":".join(str(layer) for layer in reversed(layers))
    return [sys.executable, "-P", str(Path(__file__).resolve()), stack, str(scratch), "--", *argv]


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _build_root(stack: str, scratch: Path) -> Path:
    root = scratch / "root"
    root.mkdir(parents=True, exist_ok=True)
    _mount("--make-rprivate", "/")
    # two lower folders and no upper one: nothing can be written
    empty = scratch / "empty"
    for name in ("dev", "proc", "sys", "tmp", "etc"):
        (empty / name).mkdir(parents=True, exist_ok=True)
    _mount("-t", "overlay", "overlay", "-o", f"ro,lowerdir={stack}:{empty}", str(root))
    _mount("-t", "tmpfs", "-o", f"mode=1777,size=2g,uid={USER},gid={USER},nosuid,nodev", "tmpfs", str(root / "tmp"))
    _mount("-t", "proc", "proc", str(root / "proc"))
    _mount("-t", "tmpfs", "-o", "mode=755,size=1m", "tmpfs", str(root / "dev"))
    (root / "dev" / "shm").mkdir(mode=0o1777)
    _mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", str(root / "dev" / "shm"))
    for device in _DEVICES:
        (root / "dev" / device).touch()
        _mount("--bind", f"/dev/{device}", str(root / "dev" / device))
    (root / "dev" / "fd").symlink_to("/proc/self/fd")
    return root


def _become_nobody(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")
    for capability in range(_LAST_CAPABILITY + 1):
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "drop a capability")
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")


def main(arguments: Sequence[str]) -> int:
    """Run the command and end with its code; SIGTERM and SIGINT are handed on to it."""
    stack, scratch, _, *argv = arguments
    _check(_libc.unshare(_NEW_MOUNTS | _NEW_IPC | _NEW_PIDS), "unshare")
    child = os.fork()
    if child == 0:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _become_nobody(_build_root(stack, Path(scratch)))
        # a change of uid clears it
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.execvpe(argv[0], argv, os.environ)

    def hand_on(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
