"""gRPC face of render."""

from __future__ import annotations

import grpc

from korrigo_kit.errors import NotFound
from korrigo_kit.room import Runtime
from korrigo_protos.render.v1 import render_pb2, render_pb2_grpc


class RenderService(render_pb2_grpc.RenderServiceServicer):
    """Render jobs, for other rooms and operators."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def GetRender(
        self, request: render_pb2.GetRenderRequest, context: grpc.ServicerContext
    ) -> render_pb2.GetRenderResponse:
        """Tell how far the rendering of a copy's revision is; raises NotFound (RENDER_NOT_FOUND)."""
        with self._rt.db.transaction() as tx:
            row = tx.one(
                "SELECT r.state, j.attempts, coalesce(r.reason, j.error_reason, '') AS reason,"
                " coalesce(r.final_sha256, '') AS final_sha256,"
                " coalesce(extract(epoch FROM clock_timestamp() - r.finished_at), 0)::float8 AS settled_seconds"
                " FROM renders r JOIN jobs j ON j.id = r.job_id"
                " WHERE r.copy_id = %s AND r.revision = %s ORDER BY r.request DESC LIMIT 1",
                (request.copy_id, request.revision),
            )
        if row is None:
            raise NotFound("RENDER_NOT_FOUND", "this revision was never asked for")
        return render_pb2.GetRenderResponse(**row)
