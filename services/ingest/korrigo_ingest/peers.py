"""What ingest asks of other rooms."""

from __future__ import annotations

from dataclasses import dataclass

from korrigo_kit.errors import NotFound, Timeout, Unavailable
from korrigo_kit.room import Runtime
from korrigo_protos.grading.v1 import grading_pb2, grading_pb2_grpc


@dataclass(frozen=True, slots=True)
class Exam:
    """How an exam cuts its scans."""

    exam_id: str
    split_mode: str
    pages_per_booklet: int
    split_horizontal: bool


def exam(rt: Runtime, exam_id: str) -> Exam:
    """Ask grading for an exam, or what its events told when it is away; raises NotFound (EXAM_NOT_FOUND)."""
    try:
        with rt.channels.asking("grading"):
            stub = rt.channels.stub("grading", grading_pb2_grpc.ExamServiceStub)
            answer = stub.GetExam(grading_pb2.GetExamRequest(exam_id=exam_id), timeout=2)
        return Exam(answer.exam_id, answer.split_mode, answer.pages_per_booklet, answer.split_horizontal)
    except (Unavailable, Timeout):
        known = _remembered(rt, exam_id)
        if known is None:
            raise
        return known


def _remembered(rt: Runtime, exam_id: str) -> Exam | None:
    with rt.db.transaction() as tx:
        row = tx.one(
            "SELECT exam_id::text AS exam_id, split_mode, pages_per_booklet, split_horizontal, is_deleted"
            " FROM exams WHERE exam_id = %s",
            (exam_id,),
        )
    if row is None:
        return None
    if row.pop("is_deleted"):
        raise NotFound("EXAM_NOT_FOUND", "there is no such exam")
    return Exam(**row)
