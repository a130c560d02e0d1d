"""The commands of `python -m korrigo_images`; the Makefile names them."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from korrigo_images import layout, sbom
from korrigo_images.advisories import audit_all
from korrigo_images.build import REGISTRY, Built, build
from korrigo_images.context import CHECKOUT, prepare
from korrigo_images.rootfs import ImagesFailed

MEBIBYTE = 1024 * 1024


def main() -> int:
    """Run one command; what failed is told in one line on stderr."""
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "build": _build,
        "context": _context,
        "audit": _audit,
    }
    parser = argparse.ArgumentParser(prog="korrigo_images", description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--registry", default=REGISTRY, help="what the images' names begin with")
    parser.add_argument("--release", action="store_true", help="write the commit into the images' labels")
    options = parser.parse_args()
    try:
        commands[options.command](options)
    except ImagesFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _build(options: argparse.Namespace) -> None:
    started = time.monotonic()
    built = build(registry=options.registry, revision=_revision() if options.release else "unknown")
    write_bills(built)
    sys.stdout.write(f"{built.archive}\n{sizes(built)}\n{time.monotonic() - started:.0f} s\n")


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImagesFailed(f"no commit to name: {done.stderr.strip()}")
    return done.stdout.strip()


def _context(_: argparse.Namespace) -> None:
    sys.stdout.write(f"{prepare().folder}\n")


def _audit(_: argparse.Namespace) -> None:
    for report in audit_all():
        sys.stdout.write(f"{report}\n")


def write_bills(built: Built) -> dict[str, Path]:
    """Write the bill of materials of every image beside the archive, unless they lie there already."""
    bills = {image: built.archive.with_name(f"{built.archive.stem}-{image}.cdx.json") for image in built.references}
    for image, path in bills.items():
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix="korrigo-image-") as root:
                layout.unpack(built.archive, built.references[image], Path(root), sbom.is_evidence)
                digest = built.layers[image][-1].digest
                name, _, version = built.references[image].rpartition(":")
                path.write_text(sbom.bill_of_materials(name, version, sbom.installed(Path(root)), digest))
    return bills


def sizes(built: Built) -> str:
    """Return a table of the images: all bytes of each, those that it shares with another, those of its own."""
    users: dict[str, int] = {}
    for layers in built.layers.values():
        for digest in {layer.digest for layer in layers}:
            users[digest] = users.get(digest, 0) + 1
    lines = [f"{'image':<10} {'MiB':>6} {'shared':>7} {'own':>6}"]
    for image, layers in built.layers.items():
        whole = sum(layer.size for layer in layers)
        own = sum(layer.size for layer in layers if users[layer.digest] == 1)
        lines.append(
            f"{image:<10} {whole / MEBIBYTE:>6.0f} {(whole - own) / MEBIBYTE:>7.0f} {own / MEBIBYTE:>6.1f}"
        )
    lines.append(f"all in one archive: {built.archive.stat().st_size / MEBIBYTE:.0f} MiB")
    return "\n".join(lines)
