"""The control group of one test cluster, in every hierarchy of the machine: made before kubelet, removed after it.

Called by `cluster.node`. Kubelet makes its pods' groups below it and leaves them behind when it is killed.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """List the mounted hierarchies: the one of version 2, or those of version 1."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [
        folder for folder in sorted(ROOT.iterdir()) if not folder.is_symlink() and (folder / "cgroup.procs").exists()
    ]


def make(name: str) -> None:
    """Create the group in every hierarchy."""
    for hierarchy in hierarchies():
        group = hierarchy / name.strip("/")
        group.mkdir(exist_ok=True)
        # version 1: a new cpuset is empty and holds no process until it is told its processors and memory
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / setting).exists() and (group / setting).exists():
                (group / setting).write_text((hierarchy / setting).read_text())
        # all pods together are one group beside each single process of the machine: on a crowded one they would starve
        for setting, weight in (("cpu.shares", "16384"), ("cpu.weight", "1600")):
            if (group / setting).exists():
                (group / setting).write_text(weight)


def remove(name: str) -> None:
    """Remove the group and everything below it; its processes must be gone."""
    for hierarchy in hierarchies():
        group = hierarchy / name.strip("/")
        below = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True) if group.exists() else []
        for path in [*below, group]:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()


def left(name: str) -> list[Path]:
    """List where the group still exists."""
    return [path for hierarchy in hierarchies() if (path := hierarchy / name.strip("/")).exists()]
