"""The locks fit pyproject and each other, and the Makefile keeps its promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("ingest", "grading", "render", "audit")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^ ;]+)", re.MULTILINE)
Pins = dict[str, set[Version]]


def _pins(lock: str) -> Pins:
    pins: Pins = {}
    for match in PIN.finditer((ROOT / "requirements" / f"{lock}.lock").read_text()):
        pins.setdefault(canonicalize_name(match["name"]), set()).add(Version(match["version"]))
    assert pins
    return pins


def _extra(name: str) -> list[str]:
    wanted: list[str] = []
    for line in PROJECT["project"]["optional-dependencies"][name]:
        requirement = Requirement(line)
        if requirement.name == "korrigo":
            wanted += [inner for extra in sorted(requirement.extras) for inner in _extra(extra)]
        else:
            wanted.append(line)
    return wanted


def _group(name: str) -> list[str]:
    wanted: list[str] = []
    for line in PROJECT["dependency-groups"][name]:
        wanted += _group(line["include-group"]) if isinstance(line, dict) else [line]
    return wanted


CORE: list[str] = PROJECT["project"]["dependencies"]
WANTED = {
    "build": _group("build"),
    "embedded": CORE + _extra("embedded"),
    "dev": CORE + _extra("embedded") + _group("dev"),
    **{part: CORE + _extra(part) for part in (*ROOMS, "operator")},
}


@pytest.mark.parametrize("lock", WANTED)
def test_a_lock_holds_every_requirement(lock: str) -> None:
    pins = _pins(lock)
    unmet = [
        line
        for line in WANTED[lock]
        for requirement in [Requirement(line)]
        if not any(version in requirement.specifier for version in pins.get(canonicalize_name(requirement.name), ()))
    ]
    assert unmet == [], "run make locks"


@pytest.mark.parametrize("lock", WANTED)
def test_every_pin_of_a_lock_is_hashed(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / f"{lock}.lock").read_text().strip())
    assert [entry for entry in entries if not PIN.match(entry) or "--hash=sha256:" not in entry] == []


def test_all_locks_pin_the_same_versions() -> None:
    everything = _pins("dev")
    for lock in WANTED:
        assert {name: versions for name, versions in _pins(lock).items() if versions != everything[name]} == {}, lock


def test_the_grpc_family_is_one_version() -> None:
    pins = _pins("dev")
    assert len({version for name, versions in pins.items() if name.startswith("grpcio") for version in versions}) == 1


def test_the_heavy_pdf_package_is_not_taken() -> None:
    assert not {"pymupdf", "onnxruntime"} & _pins("dev").keys()


def _third_party(folder: str) -> dict[str, set[str]]:
    """Map each distribution that a room imports at any depth to the files that do."""
    owners = packages_distributions()
    found: dict[str, set[str]] = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                if not top.startswith("korrigo"):
                    candidates = sorted(canonicalize_name(owner) for owner in set(owners.get(top, [top])))
                    found.setdefault(" or ".join(candidates), set()).add(path.name)
    return found


def _declared(*lists: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for lines in lists for line in lines}


# Kit's modules for one mode or one kind of room: whoever imports them has that extra.
BORROWED = {"pgmq": {"pgmq.py"}, "pikepdf": {"pdf.py"}, "pypdfium2": {"pdf.py"}, "pillow": {"pdf.py"}}


@pytest.mark.parametrize("room", [*ROOMS, "kit", "embedded", "operator"])
def test_what_is_imported_is_required(room: str) -> None:
    """A library that only came along with another one vanishes the day that one no longer needs it."""
    declared = _declared(CORE, _extra(room) if room != "kit" else [])
    undeclared = {
        owner: files
        for owner, files in _third_party("operator" if room == "operator" else f"services/{room}").items()
        if not declared & set(owner.split(" or ")) and not (room == "kit" and files <= BORROWED.get(owner, set()))
    }
    assert undeclared == {}


def _make(*words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *words], cwd=ROOT, env=environment, capture_output=True, check=True, text=True
    ).stdout  # fmt: skip


def test_help_lists_every_target() -> None:
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    listed = set(re.findall(r"^  ([a-z-]+) +\S", _make(), re.MULTILINE))
    assert phony - listed == {"test-setup", "programs"}, "a target needs a ## comment, or is a step of another"
    assert {"setup", "run", "test", "check", "demo", "bench", "soak", "clean"} <= listed


def test_a_second_setup_has_nothing_to_do() -> None:
    assert "install" not in _make("--dry-run", "setup")


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line.strip() for line in script.read_text().splitlines()]
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd ", "export CI="))]
    assert commands == ["exec make test </dev/null"]
