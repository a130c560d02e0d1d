"""What ingest asks of other rooms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from korrigo_kit import references
from korrigo_kit.errors import KorrigoError, NotFound, Timeout, Unavailable
from korrigo_kit.room import Runtime
from korrigo_protos.common.v1 import event_pb2, event_pb2_grpc
from korrigo_protos.grading.v1 import grading_pb2, grading_pb2_grpc

# Every other room of the installation; one that is left out would lose its blobs to the orphan sweep.
ROOMS = ("grading", "render", "audit")


def referenced(rt: Runtime, sha256: Sequence[str]) -> set[str]:
    """Ask every room which of these blobs (1000 at most) it names; raises Unavailable when one does not answer."""
    named = set(references.referenced(rt.db, sha256))
    for room in ROOMS:
        try:
            with rt.channels.asking(room):
                stub = rt.channels.stub(room, event_pb2_grpc.BlobRefServiceStub)
                answer = stub.FilterReferenced(event_pb2.FilterReferencedRequest(sha256=sha256), timeout=15)
        except KorrigoError as error:
            raise Unavailable("ROOM_SILENT", f"{room} did not tell which blobs it needs ({error.reason})") from error
        named.update(answer.sha256)
    return named


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
