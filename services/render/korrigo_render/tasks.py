"""Kinds of jobs that render does."""

from __future__ import annotations

from collections.abc import Mapping

from korrigo_kit.room import Runtime, Task
from korrigo_render.flows import rendering


def tasks(rt: Runtime) -> Mapping[str, Task]:
    """Return the task of each kind."""
    return {rendering.JOB_KIND: Task(rendering.run, rendering.on_failed)}
