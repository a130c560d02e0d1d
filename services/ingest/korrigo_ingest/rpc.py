"""gRPC face of ingest."""

from __future__ import annotations

import grpc

from korrigo_ingest.flows import reading
from korrigo_kit.room import Runtime
from korrigo_protos.ingest.v1 import ingest_pb2, ingest_pb2_grpc


class ScanService(ingest_pb2_grpc.ScanServiceServicer):
    """Scans, for other rooms and operators."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def GetScan(self, request: ingest_pb2.GetScanRequest, context: grpc.ServicerContext) -> ingest_pb2.GetScanResponse:
        """Tell the state of a scan; raises NotFound (SCAN_NOT_FOUND)."""
        row = reading.scan(self._rt.db, request.scan_id)
        return ingest_pb2.GetScanResponse(
            scan_id=row["id"],
            exam_id=row["exam_id"],
            state=row["state"],
            reason=row["error_reason"] or "",
            copy_ids=row["copy_ids"],
        )
