"""A rendering that stands still is rung again.

Started by `korrigo recover_stuck_copies` and by the intervention RetryFinalize.
"""

from __future__ import annotations

from korrigo_kit import jobs, outbox
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime
from korrigo_protos.grading.v1.events_pb2 import Recorded


def newest_revision(rt: Runtime, copy_id: str) -> int:
    """Tell the highest revision that was asked for, 1 when none was."""
    with rt.db.transaction() as tx:
        row = tx.row("SELECT coalesce(max(revision), 1) AS revision FROM renders WHERE copy_id = %s", (copy_id,))
    return int(row["revision"])


def wake(rt: Runtime, copy_id: str, revision: int, actor_id: str = SYSTEM_ACTOR, *, is_dry_run: bool = False) -> str:
    """Make the newest rendering of a copy's revision due now, and tell what was found.

    NOT_ASKED: the request never came here. RUNG: it waited. RUNNING: a worker has it. ANSWERED: it ended, and that
    was told.
    """
    with rt.db.transaction(actor=actor_id) as tx:
        row = tx.one(
            "SELECT j.id::text AS id, j.state FROM renders r JOIN jobs j ON j.id = r.job_id"
            " WHERE r.copy_id = %s AND r.revision = %s ORDER BY r.request DESC LIMIT 1",
            (copy_id, revision),
        )
        if row is None:
            return "NOT_ASKED"
        if row["state"] != "READY":
            return "RUNNING" if row["state"] == "RUNNING" else "ANSWERED"
        if not is_dry_run and jobs.hurry(tx, row["id"]):
            outbox.emit(
                tx,
                type="recorded",
                subject=("copy", copy_id),
                payload=Recorded(),
                actor_id=actor_id,
                action="RECOVER",
                metadata={"kind": "render", "job_id": row["id"], "revision": revision},
            )
        return "RUNG"
