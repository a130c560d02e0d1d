"""A room imports only what its lock holds: its image has nothing else.

Every module that serving, working or migrating a room loads is loaded in a process where whatever another lock brings
cannot be found, as in the image.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = ("ingest", "grading", "render", "audit")

# what `korrigo run|work ROOM` and every flow of the room may load; the operator's entry is a module of its own
_ROOM = """
import importlib, pkgutil, sys
from korrigo import cli, rooms
for command in ("run", "work", "config", "version"):
    importlib.import_module(f"korrigo.commands.{command}")
rooms.load_settings()
(room,) = rooms.rooms([NAME])
if NAME == "grading":
    # it answers for the whole API of the product
    importlib.import_module("korrigo.reference").merged_openapi()
package = importlib.import_module(f"korrigo_{NAME}")
for found in pkgutil.walk_packages(package.__path__, f"korrigo_{NAME}."):
    importlib.import_module(found.name)
"""
_OPERATOR = """
import importlib, pkgutil
package = importlib.import_module("korrigo_operator")
for found in pkgutil.walk_packages(package.__path__, "korrigo_operator."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""
_HIDE = """
import json, sys

class Hidden:
    names = frozenset(json.loads(sys.argv[1]))

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not in this room's lock", name=name)

sys.meta_path.insert(0, Hidden())
NAME = sys.argv[2]
"""


def _locked(lock: str) -> set[str]:
    text = (CHECKOUT / "requirements" / f"{lock}.lock").read_text()
    return set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))


def _hidden(lock: str) -> list[str]:
    """Name the modules that are installed here but come from a distribution that is not in the lock."""
    there = _locked(lock) | {"korrigo"}
    modules = packages_distributions()
    normal = {module: {re.sub(r"[-_.]+", "-", name).lower() for name in names} for module, names in modules.items()}
    return sorted(module for module, names in normal.items() if not names & there)


def _load(program: str, lock: str, name: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", _HIDE + program, json.dumps(_hidden(lock)), name]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_nothing_that_its_lock_does_not_hold(room: str) -> None:
    done = _load(_ROOM, room, room)

    assert done.returncode == 0, done.stderr[-2000:]


def test_the_operator_loads_nothing_that_its_lock_does_not_hold() -> None:
    done = _load(_OPERATOR, "operator", "operator")

    assert done.returncode == 0, done.stderr[-2000:]


def test_the_check_sees_a_module_that_is_missing() -> None:
    done = _load("import pikepdf", "grading", "grading")

    assert "pikepdf is not in this room's lock" in done.stderr
