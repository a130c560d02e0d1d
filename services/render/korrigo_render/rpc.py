"""gRPC face of render: jobs, and the act of healing that is render's (kit.interventions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import grpc

from korrigo_kit import inbox
from korrigo_kit.errors import NotFound
from korrigo_kit.interventions import Deed, Item, Order, Verb
from korrigo_kit.room import Runtime
from korrigo_protos.render.v1 import render_pb2, render_pb2_grpc
from korrigo_render.flows import waking


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


def verbs(rt: Runtime) -> Mapping[str, Verb]:
    """Tell how render heals: a rendering that waits is rung for, one that never came is fetched."""
    return {"RetryFinalize": Verb(("copy", "all"), partial(_waiting, rt), partial(_wake, rt))}


def _waiting(rt: Runtime, order: Order) -> Sequence[Item]:
    if order.kind == "copy":
        return [Item("copy", order.id, str(waking.newest_revision(rt, order.id)), "would be rung for again")]
    ids = dict.fromkeys(item.subject_id for item in rt.room.stuck(rt))
    return [Item("copy", found, str(waking.newest_revision(rt, found)), "would be rung for again") for found in ids]


def _wake(rt: Runtime, order: Order, item: Item) -> Deed:
    revision = int(item.mark)
    found = waking.wake(rt, item.subject_id, revision, order.actor_id)
    if found == "NOT_ASKED":
        # The request was lost between the rooms: have it told again, and look once more.
        for subscription in rt.room.subscriptions(rt):
            with rt.db.transaction() as tx:
                inbox.forget_looks(tx, subscription.source, ())
            inbox.catch_up(rt.db, subscription, rt.channels)
        current = waking.newest_revision(rt, item.subject_id)
        found = waking.wake(rt, item.subject_id, current, order.actor_id)
    notes = {"RUNG": "was rung for again", "RUNNING": "is being rendered", "ANSWERED": "is rendered, and was told"}
    return Deed(found != "NOT_ASKED", notes.get(found, "was never asked for"))
