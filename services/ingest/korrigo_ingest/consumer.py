"""Ingest follows grading: how exams cut their scans, who may see which copy, revoked sessions."""

from __future__ import annotations

from collections.abc import Sequence

from korrigo_kit import auth
from korrigo_kit.db import Tx
from korrigo_kit.inbox import Subscription
from korrigo_kit.room import Runtime
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.grading.v1.events_pb2 import CopyStatusChanged, ExamChanged, SessionsRevoked


def subscriptions(rt: Runtime) -> Sequence[Subscription]:
    """Pick what feeds the read models; every type carries state, so only the last of each matters."""
    return (
        Subscription(
            source="grading",
            handlers={
                "exam_changed": _on_exam_changed,
                "copy_status_changed": _on_copy_status_changed,
                "sessions_revoked": _on_sessions_revoked,
            },
            is_sequenced=False,
        ),
    )


def _on_exam_changed(tx: Tx, event: event_pb2.Event) -> None:
    exam = ExamChanged.FromString(event.payload)
    tx.run(
        "INSERT INTO exams (exam_id, split_mode, pages_per_booklet, split_horizontal, is_deleted, version,"
        " corrector_ids) VALUES (%(id)s, %(mode)s, %(pages)s, %(horizontal)s, %(deleted)s, %(version)s, %(who)s)"
        " ON CONFLICT (exam_id) DO UPDATE SET split_mode = excluded.split_mode,"
        " pages_per_booklet = excluded.pages_per_booklet, split_horizontal = excluded.split_horizontal,"
        " is_deleted = excluded.is_deleted, version = excluded.version, corrector_ids = excluded.corrector_ids"
        " WHERE exams.version <= excluded.version",
        {
            "id": exam.exam_id,
            "mode": exam.split_mode,
            "pages": exam.pages_per_booklet,
            "horizontal": exam.split_horizontal,
            "deleted": exam.is_deleted,
            "version": exam.version,
            "who": list(exam.corrector_ids),
        },
    )


def _on_copy_status_changed(tx: Tx, event: event_pb2.Event) -> None:
    copy = CopyStatusChanged.FromString(event.payload)
    tx.run(
        "INSERT INTO copy_access (copy_id, exam_id, status, assigned_corrector_id) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (copy_id) DO UPDATE SET status = excluded.status,"
        " assigned_corrector_id = excluded.assigned_corrector_id",
        (copy.copy_id, copy.exam_id, copy.status, copy.assigned_corrector_id or None),
    )


def _on_sessions_revoked(tx: Tx, event: event_pb2.Event) -> None:
    for session in SessionsRevoked.FromString(event.payload).sessions:
        auth.revoke(tx, session.session_id, session.expires_at)
