"""The read models of ingest (exams, who may see which copy) are made anew from grading's events.

Started by `korrigo rebuild_index`, after grading has told again what its outbox no longer holds.
"""

from __future__ import annotations

from korrigo_ingest import events
from korrigo_kit import inbox
from korrigo_kit.errors import Unavailable
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

# sessions_revoked is no read model: a revocation that was applied stays applied.
KINDS = ("exam_changed", "copy_status_changed")


def rebuild(rt: Runtime, actor_id: str = SYSTEM_ACTOR) -> int:
    """Apply the last event of every exam and copy again; returns how many; raises Unavailable without grading."""
    if not rt.channels.is_serving("grading"):
        raise Unavailable("GRADING_SILENT", "grading does not answer; nothing was changed")
    with rt.db.transaction(actor=actor_id) as tx:
        inbox.forget_looks(tx, "grading", KINDS)
        events.acted(tx, "REBUILD_INDEX", actor_id, {"kinds": list(KINDS)})
    followed = [one for one in rt.room.subscriptions(rt) if one.source == "grading"]
    return sum(inbox.catch_up(rt.db, subscription, rt.channels) for subscription in followed)


def known(rt: Runtime) -> tuple[int, int]:
    """Count the exams and the copies that the read models hold."""
    with rt.db.transaction() as tx:
        row = tx.row(
            "SELECT (SELECT count(*) FROM exams) AS exams, (SELECT count(*) FROM copy_access) AS copies"
        )
    return row["exams"], row["copies"]
