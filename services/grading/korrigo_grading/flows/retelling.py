"""Exams and copies are told again when the outbox no longer holds what was last told of them.

Started by `korrigo rebuild_index`: sent events are pruned after a week, and a read model that lost a row in another
room can only be made anew from an event.
"""

from __future__ import annotations

from korrigo_grading.events import copies as copy_events
from korrigo_grading.events import exams as exam_events
from korrigo_grading.models import copies, exams
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

_AT_ONCE = 100


def retell(rt: Runtime, actor_id: str = SYSTEM_ACTOR) -> tuple[int, int]:
    """Tell again what was pruned; returns how many exams and copies."""
    return _exams(rt, actor_id), _copies(rt, actor_id)


def _silent(rt: Runtime, table: str, subject_type: str, type: str) -> list[str]:
    with rt.db.transaction() as tx:
        rows = tx.all(
            f"SELECT t.id::text AS id FROM {table} t WHERE t.deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM outbox o"
            " WHERE o.subject_type = %s AND o.subject_id = t.id::text AND o.type = %s) ORDER BY t.id LIMIT %s",
            (subject_type, type, _AT_ONCE),
        )
    return [row["id"] for row in rows]


def _exams(rt: Runtime, actor_id: str) -> int:
    told = 0
    while ids := _silent(rt, "exams", "exam", "exam_changed"):
        for exam_id in ids:
            with rt.db.transaction(actor=actor_id) as tx:
                exam_events.exam_changed(
                    tx, exams.lock(tx, exam_id), action="RETOLD", actor_id=actor_id, metadata={}
                )
                told += 1
    return told


def _copies(rt: Runtime, actor_id: str) -> int:
    told = 0
    while ids := _silent(rt, "copies", "copy", "copy_status_changed"):
        for copy_id in ids:
            with rt.db.transaction(actor=actor_id) as tx:
                copy = copies.hold(tx, copy_id, even_deleted=True)
                if copy is not None:
                    copy_events.status_changed(tx, copy, copy.status, actor_id=actor_id)
                    told += 1
    return told
