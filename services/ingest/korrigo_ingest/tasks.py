"""Kinds of jobs that ingest does."""

from __future__ import annotations

from collections.abc import Mapping

from korrigo_ingest.flows import accepting, importing
from korrigo_kit.room import Runtime, Task


def tasks(rt: Runtime) -> Mapping[str, Task]:
    """Return the task of each kind."""
    return {accepting.JOB_KIND: Task(importing.run, importing.on_failed)}
