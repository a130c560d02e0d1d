"""One attempt at a job: claim, heartbeat, run, settle. Called by pool children, and by tests without a broker."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from korrigo_kit import context, jobs
from korrigo_kit.errors import Bug, KorrigoError, StateConflict
from korrigo_kit.jobs import Job
from korrigo_kit.room import Runtime, Task, Work
from korrigo_kit.scratch import scratch_folder
from korrigo_kit.telemetry import traces

log = logging.getLogger("korrigo.jobs")

# How long a settled attempt tries to tell a database that is away; after that the lease runs out by itself.
_SETTLE_SECONDS = 20


def worker_name() -> str:
    """Name this process in job rows."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_job(runtime: Runtime, tasks: Mapping[str, Task], job_id: str) -> bool:
    """Claim a job and make one attempt; False when it was not to be had."""
    limits = jobs.Limits.of(runtime.settings.jobs)
    job = jobs.claim(runtime.db, job_id, worker_name(), limits)
    if job is None:
        return False
    with (
        context.bind(
            service=runtime.name,
            request_id=job.request_id or None,
            traceparent=job.traceparent or None,
            job_id=job.id,
        ),
        traces.span(f"job {job.kind}"),
        scratch_folder(runtime.name) as folder,
    ):
        _attempt(runtime, tasks, job, limits, Path(folder))
    return True


def _attempt(runtime: Runtime, tasks: Mapping[str, Task], job: Job, limits: jobs.Limits, folder: Path) -> None:
    task = tasks.get(job.kind)
    work = Work(job, runtime.settings.jobs.limit_seconds, folder)
    pulse = _Pulse(runtime, work, limits)
    pulse.start()
    log.info("job %s attempt %d started", job.kind, job.attempt)
    error: Exception | None = None
    try:
        if task is None:
            raise Bug("UNKNOWN_JOB_KIND", f"no task is named {job.kind}")
        task.run(runtime, work)
    except Exception as raised:  # every failure of the work becomes a state of the row
        error = raised
    finally:
        pulse.stop()
    if error is None and _is_running(runtime, job):
        error = Bug("JOB_NOT_FINISHED", "the task returned without finishing its job")
    if error is None:
        log.info("job %s done", job.kind)
    elif isinstance(error, StateConflict) and error.reason == "LEASE_LOST":
        log.warning("job %s was taken over by another worker", job.kind)
    else:
        _settle(runtime, task, job, limits, error)


def _is_running(runtime: Runtime, job: Job) -> bool:
    with runtime.db.transaction() as tx:
        row = tx.one("SELECT 1 AS ok FROM jobs WHERE id = %s AND fence = %s AND state = 'RUNNING'", (job.id, job.fence))
    return row is not None


def _settle(runtime: Runtime, task: Task | None, job: Job, limits: jobs.Limits, error: Exception) -> None:
    ends_at = time.monotonic() + _SETTLE_SECONDS
    failure = None
    while True:
        try:
            failure = jobs.fail(runtime.db, job, error, limits, task.on_failed if task else None)
            break
        except KorrigoError as failed:
            if time.monotonic() > ends_at:
                log.error("job %s: its failure could not be recorded (%s)", job.kind, failed.reason)
                return
            time.sleep(0.5)
    if failure is None:
        log.warning("job %s postponed or taken over: %s", job.kind, error)
        return
    is_known = isinstance(error, KorrigoError) and not isinstance(error, Bug)
    log.error(
        "job %s attempt %d failed: %s",
        job.kind,
        failure.attempt,
        failure.reason,
        extra={"reason": failure.reason},
        exc_info=None if is_known else error,
    )


class _Pulse(threading.Thread):
    """Renews the lease until stopped; sets `work.is_lost` when the lease is gone."""

    def __init__(self, runtime: Runtime, work: Work, limits: jobs.Limits) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._runtime = runtime
        self._work = work
        self._limits = limits
        self._stop_event = threading.Event()

    def run(self) -> None:
        interval = self._runtime.settings.jobs.heartbeat_seconds
        while not self._stop_event.wait(interval):
            try:
                self._work.remaining_seconds()
                if not jobs.heartbeat(self._runtime.db, self._work.job, self._limits):
                    self._work.is_lost.set()
                    return
            except KorrigoError as error:
                # Over its time: let the lease run out. Database away: try again at the next beat.
                if error.reason == "TIMEOUT":
                    self._work.is_lost.set()
                    return

    def stop(self) -> None:
        self._stop_event.set()
        self.join(5)
