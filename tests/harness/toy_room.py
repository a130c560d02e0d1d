"""A room of the tests: the smallest thing that kit can run, and its registry.

Named `render`, because kit's addresses and roles are those of the four rooms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from korrigo_kit import jobs, outbox
from korrigo_kit.db import Tx
from korrigo_kit.errors import Invalid
from korrigo_kit.inbox import Subscription
from korrigo_kit.jobs import Failure, Job
from korrigo_kit.room import Room, Runtime, Task, Work
from korrigo_kit.settings import Settings, load
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.grading.v1 import events_pb2


def _run(rt: Runtime, work: Work) -> None:
    todo = work.job.payload.get("do", "finish")
    if todo == "refuse":
        raise Invalid("NOT_LIKED", "this job is refused")
    if todo == "crash":
        raise RuntimeError("as asked")
    if todo == "die once" and work.job.lost_leases == 0:
        os._exit(9)
    if todo == "sleep":
        time.sleep(float(work.job.payload["seconds"]))
    with rt.db.transaction() as tx:
        tx.run("INSERT INTO done (job_id) VALUES (%s)", (work.job.id,))
        outbox.emit(tx, type="job_done", subject=("system", work.job.subject_id), payload=events_pb2.Recorded())
        jobs.finish(tx, work.job)


def _on_failed(tx: Tx, job: Job, failure: Failure) -> None:
    tx.run(
        "INSERT INTO failed (job_id, reason, is_final) VALUES (%s, %s, %s)", (job.id, failure.reason, failure.is_final)
    )


def _tasks(rt: Runtime) -> Mapping[str, Task]:
    return {"toy": Task(_run, _on_failed)}


def _heard(tx: Tx, event: event_pb2.Event) -> None:
    time.sleep(float(os.environ.get("TOY_HEARS_SECONDS", "0")))
    tx.run("INSERT INTO heard (event_id, source_seq) VALUES (%s, %s)", (event.id, event.source_seq))


def _subscriptions(rt: Runtime) -> Sequence[Subscription]:
    # A room that follows itself: publisher, broker, consumer and resend in one.
    return (Subscription(source="render", default=_heard),)


ROOM = Room(
    name="render",
    migrations=Path(__file__).parent / "toy_migrations",
    tasks=_tasks,
    subscriptions=_subscriptions,
)


def rooms(names: Sequence[str]) -> list[Room]:
    """The registry that spawned children ask."""
    return [ROOM]


def load_settings() -> Settings:
    """Settings of the environment."""
    return load()


if __name__ == "__main__":
    import sys

    if sys.argv[1] == "work":
        from korrigo_kit.work import work

        work([ROOM], load_settings(), registry="harness.toy_room", ready_file=Path(sys.argv[2]))
    else:
        from korrigo_kit.serve import run

        run([ROOM], load_settings(), parts=sys.argv[1].split(","), ready_file=Path(sys.argv[2]))
