"""The registry of rooms: the only place that knows all four.

Rooms are imported when they are asked for, so that a process for one room does not load the others. Pool children
of `kit.work` import this module by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from korrigo.settings import SECTIONS
from korrigo_kit.room import Room
from korrigo_kit.settings import Section, Settings, load

NAMES = ("ingest", "grading", "render", "audit")


def rooms(names: Sequence[str] = NAMES) -> list[Room]:
    """Return the rooms of these names; `all` stands for every one."""
    chosen = NAMES if "all" in names else tuple(names)
    return [importlib.import_module(f"korrigo_{name}.room").ROOM for name in chosen]


def sections() -> list[type[Section]]:
    """List the front door's and every room's own settings, so that all may share one environment."""
    found: list[type[Section]] = [*SECTIONS]
    for name in NAMES:
        module = importlib.import_module(f"korrigo_{name}.settings")
        found.extend(module.SECTIONS)
    # In a cluster the operator and the tools may be given one environment.
    found.extend(importlib.import_module("korrigo_operator.settings").SECTIONS)
    return found


def load_settings() -> Settings:
    """Read the environment with the settings of every room."""
    return load(sections())
