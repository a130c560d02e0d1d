"""Makes Debian root file systems out of packages, without Docker: what the images stand on.

Called by the build of the product's images (`korrigo_images.build`) and by the test cluster's image of data services.
mmdebstrap takes the sources that this machine's own apt knows, security updates included, so that no address is
written down here. A root file system is kept in the tool cache under what decides about it: the packages asked for, the
rules below, and the releases that apt has seen (`apt-get update` after a security update makes the next one anew).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
# 200 MB of packages over a slow mirror beside other work
_SECONDS = 3600
# what nobody reads in a container; licences stay, they have to go along
_LEFT_OUT = (
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/doc-base/*",
    "/usr/share/lintian/*",
    "/usr/share/bash-completion/*",
)
_KEPT = ("/usr/share/doc/*/copyright",)


class ImagesFailed(Exception):
    """A part of the images could not be built; the message says which and how."""


class MissingProgram(ImagesFailed):
    """A program that building images needs is not installed; the message names Debian's package."""


@dataclass(frozen=True)
class Recipe:
    """One root file system: essential Debian, these packages and what they depend on, without the paths left out.

    `before` and `after` are shell commands with the root's path as `$1`, run before the packages are set up and at
    the end.
    """

    name: str
    packages: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One entry of apt's list: the line, and the file by which a new release is noticed."""

    line: str
    index: Path


def tool_cache() -> Path:
    """Return the folder outside the repository where what takes long to make is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "korrigo"


def run(
    argv: Sequence[str],
    what: str,
    *,
    seconds: float = _SECONDS,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program of the build and return its output; raises ImagesFailed with the end of its complaint."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=env,
        )
    except FileNotFoundError:
        raise MissingProgram(f"{what}: {argv[0]} is not installed (make test as root installs it)") from None
    except subprocess.TimeoutExpired:
        raise ImagesFailed(f"{what} did not end within {seconds:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-3000:]
        raise ImagesFailed(f"{what} failed ({argv[0]} ended with {done.returncode}):\n{said}")
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock: two checkouts that build at once share the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def debian_sources() -> list[Source]:
    """Return the machine's own apt entries for Debian itself, and for nobody else's repositories."""
    found = _known_sources()
    if not found and os.geteuid() == 0:
        # a container's image often comes without the lists
        run(["apt-get", "update", "-qq"], "apt-get update")
        found = _known_sources()
    if not found:
        raise ImagesFailed(f"apt knows no source of Debian {SUITE}: the images' root file system cannot be made")
    return found


def _known_sources() -> list[Source]:
    form = "$(ORIGIN)|$(RELEASE)|deb $(SITE) $(RELEASE) $(COMPONENT)|$(FILENAME)"
    text = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], "apt-get indextargets")
    fields = [line.split("|") for line in text.splitlines()]
    return [
        Source(line, Path(file))
        for origin, suite, line, file in fields
        if origin == "Debian" and suite.startswith(SUITE)
    ]


def debian_rootfs(recipe: Recipe) -> Path:
    """Return a root file system as a tar, made when it is not in the cache (about a minute).

    Raises MissingProgram without mmdebstrap, ImagesFailed when a package cannot be had.
    """
    folder = tool_cache() / "images" / "rootfs"
    sources = debian_sources()
    tar = folder / f"{recipe.name}-{_digest(recipe, sources)}.tar"
    if not tar.exists():
        with locked(folder / f"{recipe.name}.lock"):
            if not tar.exists():
                _make(recipe, sources, tar)
    return tar


def _digest(recipe: Recipe, sources: Sequence[Source]) -> str:
    digest = hashlib.sha256(repr((recipe, _LEFT_OUT, _KEPT)).encode())
    for source in sources:
        # the list says which versions there are, wherever it came from
        digest.update(source.index.read_bytes())
    return digest.hexdigest()[:16]


def _make(recipe: Recipe, sources: Sequence[Source], tar: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise MissingProgram("mmdebstrap is not installed (Debian: mmdebstrap): no root file system can be made")
    making = tar.with_name(f"making-{os.getpid()}-{tar.name}")
    argv = ["mmdebstrap", "--variant=essential", "--quiet", f"--include={','.join(recipe.packages)}"]
    # a file system that is packed and thrown away needs no fsync per file, which is most of the time on a busy disk
    argv += ["--dpkgopt=force-unsafe-io"]
    argv += [f"--aptopt={line}" for line in _apt_settings()]
    argv += [f"--dpkgopt=path-exclude={path}" for path in (*_LEFT_OUT, *recipe.left_out)]
    argv += [f"--dpkgopt=path-include={path}" for path in _KEPT]
    argv += [f"--essential-hook={command}" for command in recipe.before]
    argv += [f"--customize-hook={command}" for command in recipe.after]
    argv += [SUITE, str(making), *(source.line for source in sources)]
    try:
        # the same packages give the same bytes
        run(argv, f"the root file system {recipe.name}", env=os.environ | {"SOURCE_DATE_EPOCH": "0"})
        making.rename(tar)
    finally:
        making.unlink(missing_ok=True)


def _apt_settings() -> list[str]:
    """Return how this machine reaches its mirror (proxies, certificates, dates), for mmdebstrap's own apt."""
    lines = run(["apt-config", "dump", "Acquire"], "apt-config dump").splitlines()
    ways = ("Acquire::Check-", "Acquire::http", "Acquire::https", "Acquire::Retries")
    return [line for line in lines if line.startswith(ways) and not line.endswith('"";')]
