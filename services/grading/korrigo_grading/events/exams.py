"""What grading tells of exams: ingest cuts scans by it, audit keeps it."""

from __future__ import annotations

from typing import Any

from korrigo_grading.models.exams import Exam
from korrigo_kit import outbox
from korrigo_kit.db import Tx
from korrigo_kit.outbox import Emitted
from korrigo_protos.grading.v1 import events_pb2


def exam_changed(
    tx: Tx, exam: Exam, *, action: str, actor_id: str, metadata: dict[str, Any], is_deleted: bool = False
) -> Emitted:
    """Tell that an exam was created, changed or taken away; `action` EXAM_CREATED, EXAM_UPDATED or ARCHIVE."""
    payload = events_pb2.ExamChanged(
        exam_id=exam.id,
        split_mode=exam.split.mode,
        pages_per_booklet=exam.split.pages_per_booklet,
        split_horizontal=exam.split.split_horizontal,
        is_deleted=is_deleted,
        version=exam.version,
        corrector_ids=exam.corrector_ids,
    )
    return outbox.emit(
        tx,
        type="exam_changed",
        subject=("exam", exam.id),
        payload=payload,
        actor_id=actor_id,
        action=action,
        metadata={"version": exam.version, **metadata},
    )
