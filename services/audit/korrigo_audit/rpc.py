"""gRPC face of audit."""

from __future__ import annotations

import grpc

from korrigo_audit.flows.verification import verify
from korrigo_kit.room import Runtime
from korrigo_protos.audit.v1 import audit_pb2, audit_pb2_grpc


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """Verification for operators and other rooms."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def Verify(self, request: audit_pb2.VerifyRequest, context: grpc.ServicerContext) -> audit_pb2.VerifyResponse:
        """Check one stream, or all of them."""
        subject = (request.subject_type, request.subject_id) if request.subject_id else None
        verdict = verify(self._rt, subject)
        return audit_pb2.VerifyResponse(
            is_valid=verdict.is_valid,
            records=verdict.records,
            streams=verdict.streams,
            findings=[
                audit_pb2.Finding(
                    code=finding.code,
                    subject_type=finding.subject_type,
                    subject_id=finding.subject_id,
                    source=finding.source,
                    source_seq=finding.source_seq,
                )
                for finding in verdict.findings
            ],
        )
