"""The Celery task of pool children: hear a bell, make one attempt.

Imported by spawned children only (`include`). Runtimes are built on the first bell, after the spawn, so that no
connection, channel or thread ever crosses a process boundary.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import shared_task, signals

from korrigo_kit import jobs
from korrigo_kit.attempt import run_job
from korrigo_kit.errors import KorrigoError
from korrigo_kit.ring import TASK
from korrigo_kit.room import Process, Runtime, Task
from korrigo_kit.telemetry import logs, samples, traces

log = logging.getLogger("korrigo.pool")

# Well below the visibility timeout of a bell, so that it is not rung twice meanwhile.
GO_ON_SECONDS = 20.0


@dataclass
class _Child:
    process: Process
    tasks: Mapping[str, Mapping[str, Task]]

    def runtime(self, room: str) -> Runtime:
        return self.process.runtimes[room]


_child: _Child | None = None


def _build(conf: Any) -> _Child:
    registry = importlib.import_module(conf.korrigo_registry)
    settings = registry.load_settings()
    names = list(conf.korrigo_rooms)
    service = f"{names[0]}-worker" if len(names) == 1 else "worker"
    logs.configure(service, settings.log.level, settings.log.directory, settings.log.general_path)
    traces.configure(service, settings.otel)
    samples.tidy()
    process = Process.build(registry.rooms(names), settings)
    return _Child(process, {name: runtime.room.tasks(runtime) for name, runtime in process.runtimes.items()})


def _run_while_due(child: _Child, room: str, job_id: str) -> None:
    # A bell may be late or lost while work waits: a child that is free goes on by itself for a while.
    runtime, tasks = child.runtime(room), child.tasks[room]
    ends_at = time.monotonic() + GO_ON_SECONDS
    following: str | None = job_id
    while following is not None:
        if not run_job(runtime, tasks, following):
            log.debug("job %s was not to be had", following)
        following = jobs.next_due(runtime.db) if time.monotonic() < ends_at else None


@shared_task(name=TASK, bind=True)  # type: ignore[untyped-decorator]
def run(self: Any, room: str, job_id: str) -> None:
    """Make an attempt at a job; the row decides whether there is anything to do."""
    global _child
    if _child is None:
        _child = _build(self.app.conf)
    if room not in _child.tasks:
        log.warning("a bell for %s came to a worker that has no such room", room)
        return
    try:
        _run_while_due(_child, room, job_id)
    except KorrigoError as error:
        # The claim itself failed (database away): the sweeper will ring again.
        log.warning("job %s waits: %s", job_id, error.reason)


@signals.worker_process_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
def close(**_: object) -> None:
    """Close what the child opened."""
    if _child is not None:
        _child.process.close()
