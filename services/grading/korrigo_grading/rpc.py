"""gRPC face of grading: what other rooms may ask now."""

from __future__ import annotations

import grpc

from korrigo_grading.flows import exams
from korrigo_kit.room import Runtime
from korrigo_kit.rpc import caller
from korrigo_protos.grading.v1 import grading_pb2, grading_pb2_grpc


class ExamService(grading_pb2_grpc.ExamServiceServicer):
    """Exams, for the room that imports into them."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def GetExam(
        self, request: grading_pb2.GetExamRequest, context: grpc.ServicerContext
    ) -> grading_pb2.GetExamResponse:
        """Tell how an exam cuts its scans; refuses a person who may not upload."""
        exam = exams.read_for_import(self._rt, caller(), request.exam_id)
        return grading_pb2.GetExamResponse(
            exam_id=exam.id,
            split_mode=exam.split.mode,
            pages_per_booklet=exam.split.pages_per_booklet,
            split_horizontal=exam.split.split_horizontal,
            version=exam.version,
            corrector_ids=exam.corrector_ids,
        )
