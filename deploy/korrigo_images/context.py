"""Prepares what the Containerfile builds from: the wheels that the locks name, this checkout's wheel, the installer.

Called by `korrigo_images.build`, and by `python -m korrigo_images context` for whoever builds with Docker or podman.
pip downloads with its own settings of this machine and checks every hash; the build itself then asks nobody.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from korrigo_images.rootfs import ImagesFailed, locked, run, tool_cache

CHECKOUT = Path(__file__).resolve().parents[2]
CONTAINERFILE = CHECKOUT / "deploy" / "Containerfile"
IN_THE_BUILD = Path(__file__).resolve().parent / "in_the_build"
# image to its lock; audit's is what all rooms have in common, tools holds every room and what runs them on one machine
LOCKS = {
    "ingest": "ingest",
    "grading": "grading",
    "render": "render",
    "audit": "audit",
    "operator": "operator",
    "tools": "embedded",
}


@dataclass(frozen=True)
class Context:
    """A build context that is ready, and the digest of everything in it that decides about the images."""

    folder: Path
    digest: str
    libraries_digest: str
    installer_digest: str
    version: str


def prepare() -> Context:
    """Return the context of this checkout, made when the cache has none; raises ImagesFailed when it cannot be."""
    locks = [CHECKOUT / "requirements" / f"{lock}.lock" for lock in LOCKS.values()]
    installer = [path for path in sorted(IN_THE_BUILD.iterdir()) if path.is_file()]
    libraries_digest = _digest([*locks, CHECKOUT / "requirements" / "build.lock"])
    installer_digest = _digest(installer)
    # the rooms' locks name nothing that the embedded one does not
    wheels = _wheels([lock for lock in locks if lock.stem in ("embedded", "operator")], libraries_digest)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _korrigo_wheel(Path(scratch))
        digest = _digest([CONTAINERFILE, *installer, *locks, wheel])
        folder = tool_cache() / "images" / "contexts" / digest
        with locked(folder.parent / "lock"):
            if not folder.exists():
                _lay_out(folder, wheels, wheel, [*installer, CONTAINERFILE], locks)
        version = wheel.name.split("-")[1]
    return Context(folder, digest, libraries_digest, installer_digest, version)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _wheels(locks: Iterable[Path], digest: str) -> Path:
    """Return the folder with every wheel of the locks, for this machine's kind of processor."""
    folder = tool_cache() / "images" / "wheels" / digest
    if not folder.exists():
        with locked(folder.parent / "lock"):
            if not folder.exists():
                making = folder.with_name(f"making-{os.getpid()}-{digest}")
                try:
                    _download(locks, making)
                    making.rename(folder)
                finally:
                    shutil.rmtree(making, ignore_errors=True)
    return folder


def _download(locks: Iterable[Path], folder: Path) -> None:
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder)]
    for lock in locks:
        argv += ["--requirement", str(lock)]
    run(argv, "pip download of the locks")


def _korrigo_wheel(folder: Path) -> Path:
    # in a process of its own because hatchling works in the current folder; the same sources give the same bytes
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    run(argv, "the wheel of Korrigo", seconds=300, cwd=CHECKOUT)
    (wheel,) = folder.glob("korrigo-*.whl")
    return wheel


def _lay_out(folder: Path, wheels: Path, wheel: Path, files: Iterable[Path], locks: Iterable[Path]) -> None:
    making = folder.with_name(f"making-{os.getpid()}-{folder.name}")
    try:
        # hard links: a context costs no space beside the wheels
        shutil.copytree(wheels, making / "wheels", copy_function=os.link)
        for name in ("requirements", "dist", "bin"):
            (making / name).mkdir()
        for lock in locks:
            shutil.copyfile(lock, making / "requirements" / lock.name)
        shutil.copyfile(wheel, making / "dist" / wheel.name)
        for file in files:
            shutil.copyfile(file, making / file.name)
        shutil.copy2(_uv(), making / "bin" / "uv")
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _uv() -> Path:
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    if not uv.exists():
        raise ImagesFailed(f"{uv} is missing: run make setup first")
    return uv
