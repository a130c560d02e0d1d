"""Builds the images of Korrigo from deploy/Containerfile without a daemon, and packs all of them into one OCI archive.

Called by `make images` and by the tests. From Python:

    built = korrigo_images.build.build()      # minutes cold, seconds when nothing changed (docs/guides/images.md)
    built.archive                             # one OCI archive: ctr -n k8s.io images import ARCHIVE takes all six
    built.references["grading"]               # localhost/korrigo/grading:0.1.0

buildah runs the steps in a chroot, so that no container runtime is needed, and keeps its layers in the tool cache,
apart for each base and set of locks. Layers are shared: Debian and Python, what all rooms import, Korrigo itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from korrigo_images import layout
from korrigo_images.context import LOCKS, Context, prepare
from korrigo_images.rootfs import ImagesFailed, MissingProgram, Recipe, debian_rootfs, locked, run, tool_cache

IMAGES = tuple(LOCKS)
REGISTRY = "localhost"
BASE = Recipe("base", ("ca-certificates", "libstdc++6", "python3", "tini"))
# an archive is as large as all layers together; the newest serve the checkouts of one machine
_ARCHIVES_KEPT = 4
_STORAGES_KEPT = 2


@dataclass(frozen=True)
class Built:
    """What a build made: the archive, and of each image its reference and the sizes of its layers in bytes."""

    archive: Path
    references: dict[str, str]
    layers: dict[str, list[layout.Layer]]


def build(*, registry: str = REGISTRY, revision: str = "unknown") -> Built:
    """Return all images in one archive, from the cache when nothing that decides about them changed.

    Raises MissingProgram without buildah or mmdebstrap, ImagesFailed when a step fails.
    """
    base = debian_rootfs(BASE)
    context = prepare()
    references = {image: f"{registry}/korrigo/{image}:{context.version}" for image in IMAGES}
    folder = tool_cache() / "images" / "archives"
    key = f"{base.stem.removeprefix('base-')}-{context.digest}-{revision[:12]}-{registry.replace('/', '_')}"
    archive = folder / f"korrigo-{key}.tar"
    with locked(folder / "lock"):
        if not archive.exists():
            _build(base, context, references, revision, archive)
            _forget_old(folder.glob("korrigo-*.tar"), _ARCHIVES_KEPT)
        # what is used last is forgotten last
        os.utime(archive)
    return Built(archive, references, layout.layers(archive, references))


def _build(base: Path, context: Context, references: dict[str, str], revision: str, archive: Path) -> None:
    if shutil.which("buildah") is None:
        raise MissingProgram("buildah is not installed (Debian: buildah): no image can be built")
    storages = tool_cache() / "images" / "storage"
    storage = Storage(storages / f"{base.stem}-{context.libraries_digest}")
    started = storage.folder.exists()
    if started:
        os.utime(storage.folder)
    base_name = storage.import_base(base)
    making = archive.with_name(f"making-{os.getpid()}")
    try:
        for image, reference in references.items():
            settings = {
                "BASE": base_name,
                "VERSION": context.version,
                "REVISION": revision,
                "INSTALLER": context.installer_digest,
            }
            storage.build(context.folder, image, reference, settings)
            storage.push(reference, making / image)
        layout.pack(making, references, archive)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    for old in _oldest(storages.iterdir(), _STORAGES_KEPT):
        Storage(old).remove()


class Storage:
    """A store of buildah's own, so that nothing of the machine's containers is touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._driver = ""

    def import_base(self, rootfs: Path) -> str:
        """Make an image of a root file system, once; return its name."""
        name = f"localhost/korrigo-base:{rootfs.stem}"
        if not self._run("images", "--quiet", "--filter", f"reference={name}", what="looking for the base"):
            container = self._run("from", "scratch", what="starting the base").strip()
            self._run("add", "--quiet", container, str(rootfs), "/", what="unpacking the base")
            self._run("commit", "--quiet", "--timestamp", "0", "--rm", container, name, what="keeping the base")
        return name

    def build(self, context: Path, target: str, reference: str, settings: dict[str, str]) -> None:
        """Build one target; steps that an earlier build made are taken from the store."""
        argv = ["build", "--quiet", "--layers", "--isolation", "chroot", "--format", "oci", "--timestamp", "0"]
        argv += ["--pull-never", "--network", "host", "--target", target, "--tag", reference]
        for name, value in settings.items():
            argv += ["--build-arg", f"{name}={value}"]
        argv += ["--file", str(context / "Containerfile"), str(context)]
        self._run(*argv, what=f"the image {target}")

    def push(self, reference: str, folder: Path) -> None:
        """Export an image, layers as they are: on one machine compressing costs more than space."""
        folder.mkdir(parents=True)
        argv = ["push", "--quiet", "--format", "oci", "--disable-compression", reference, f"dir:{folder}"]
        self._run(*argv, what=f"exporting {reference}")

    def remove(self) -> None:
        """Remove the store with everything in it."""
        subprocess.run(
            [*self._buildah(), "rm", "--all"], capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=300
        )
        # an overlay mount that stayed would make the removal fail half-way
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *arguments: str, what: str) -> str:
        return run([*self._buildah(), *arguments], what)

    def _buildah(self) -> list[str]:
        if not self._driver:
            self._driver = self._choose_driver()
        return [
            "buildah", "--storage-driver", self._driver, "--root", str(self.folder / "root"),
            "--runroot", str(self.folder / "run"),
        ]  # fmt: skip

    def _choose_driver(self) -> str:
        """Overlay where this file system and kernel can, else whole copies (vfs), which are slow but always work."""
        note = self.folder / "driver"
        if note.exists():
            return note.read_text()
        self.folder.mkdir(parents=True, exist_ok=True)
        refusals = []
        for driver in ("overlay", "vfs"):
            root = self.folder / "root"
            argv = ["buildah", "--storage-driver", driver, "--root", str(root), "--runroot", str(self.folder / "run")]
            done = subprocess.run(
                [*argv, "info"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120
            )
            if done.returncode == 0 and json.loads(done.stdout)["store"]["GraphDriverName"] == driver:
                note.write_text(driver)
                return driver
            refusals.append(f"{driver}: {done.stderr.strip()[-300:]}")
            shutil.rmtree(root, ignore_errors=True)
        raise ImagesFailed("buildah can use no storage driver here: " + "; ".join(refusals))


def _forget_old(paths: Iterable[Path], kept: int) -> None:
    for path in _oldest(paths, kept):
        path.unlink(missing_ok=True)


def _oldest(paths: Iterable[Path], kept: int) -> list[Path]:
    known = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    return known[kept:]
