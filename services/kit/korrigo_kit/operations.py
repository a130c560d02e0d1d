"""gRPC face that every room has for those who keep it running: what is stuck, and acts of healing.

Both sides are here: `service` for a room's servicers, `list_stuck`, `intervene` and `ask_figures` for the command
line, grading's summary and the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc

from korrigo_kit import interventions, stuck
from korrigo_kit.interventions import ACTIONS, Asked
from korrigo_kit.rpc import Channels
from korrigo_kit.stuck import Stuck
from korrigo_kit.telemetry import figures
from korrigo_kit.telemetry.figures import Told
from korrigo_protos.common.v1 import operations_pb2, operations_pb2_grpc

if TYPE_CHECKING:
    from korrigo_kit.room import Runtime

# What one message holds well below its limit.
MAX_ITEMS = 1000
MAX_TOLD = 200
_LIST_SECONDS = 10
# The longest act verifies a whole trail.
_ACT_SECONDS = 300


class OperationService(operations_pb2_grpc.OperationServiceServicer):
    """What a room answers to those who operate it."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def ListStuck(  # noqa: N802 - the protocol's name
        self, request: operations_pb2.ListStuckRequest, context: grpc.ServicerContext
    ) -> operations_pb2.ListStuckResponse:
        """List what is stuck here, oldest first."""
        found = [item for item in self._rt.room.stuck(self._rt) if request.stage in ("", item.stage)]
        limit = min(request.limit or MAX_ITEMS, MAX_ITEMS)
        return operations_pb2.ListStuckResponse(
            items=[_item(item) for item in stuck.oldest_first(found)[:limit]],
            counts=[
                operations_pb2.StuckCount(stage=stage, reason=reason, copies=int(copies))
                for (stage, reason), copies in sorted(stuck.count(found).items())
            ],
        )

    def Intervene(  # noqa: N802 - the protocol's name
        self, request: operations_pb2.InterveneRequest, context: grpc.ServicerContext
    ) -> operations_pb2.InterveneResponse:
        """Do one act of healing, once for its uid; errors as `interventions.intervene`."""
        outcome = interventions.intervene(
            self._rt,
            Asked(
                request.uid,
                request.action,
                request.target.kind,
                request.target.id,
                request.reason,
                request.dry_run,
                request.actor,
                request.approver,
            ),
        )
        done = [deed for _, deed in outcome.deeds if deed.is_done]
        return operations_pb2.InterveneResponse(
            state=outcome.state,
            items=[
                operations_pb2.ActedOn(
                    subject_type=item.subject_type,
                    subject_id=item.subject_id,
                    is_done=deed.is_done,
                    note=deed.note[:500],
                )
                for item, deed in outcome.deeds[:MAX_TOLD]
            ],
            affected=len(done),
            refused=len(outcome.deeds) - len(done),
            problems=sum(deed.problems for _, deed in outcome.deeds),
            event_ids=outcome.event_ids,
            is_replayed=outcome.is_replayed,
            needs_approval=outcome.needs_approval,
        )

    def TellFigures(  # noqa: N802 - the protocol's name
        self, request: operations_pb2.TellFiguresRequest, context: grpc.ServicerContext
    ) -> operations_pb2.TellFiguresResponse:
        """Tell what every living process of this room counted lately."""
        with self._rt.db.transaction() as tx:
            told = figures.read(tx)
        return operations_pb2.TellFiguresResponse(
            processes=[
                operations_pb2.ProcessFigures(
                    process=one.process,
                    service=one.service,
                    seconds=one.seconds,
                    figures=[
                        operations_pb2.Figure(name=name, label=label, value=value)
                        for (name, label), value in sorted(one.numbers.items())
                    ],
                )
                for one in told
            ]
        )


def service(rt: Runtime) -> Callable[[grpc.Server], None]:
    """Add this face to a room's gRPC server."""
    return lambda server: operations_pb2_grpc.add_OperationServiceServicer_to_server(OperationService(rt), server)


def _item(item: Stuck) -> operations_pb2.StuckItem:
    return operations_pb2.StuckItem(
        room=item.room,
        stage=item.stage,
        reason=item.reason,
        subject_type=item.subject_type,
        subject_id=item.subject_id,
        since_ms=int(item.since.timestamp() * 1000),
        copies=item.copies,
        job_id=item.job_id,
        attempts=item.attempts,
        lost_leases=item.lost_leases,
        error_reason=item.error_reason,
    )


def list_stuck(channels: Channels, room: str, *, seconds: float = _LIST_SECONDS, limit: int = 0) -> list[Stuck]:
    """Ask a room what is stuck there, oldest first; raises the room's error, or Unavailable."""
    with channels.asking(room):
        stub = channels.stub(room, operations_pb2_grpc.OperationServiceStub)
        answer = stub.ListStuck(operations_pb2.ListStuckRequest(limit=limit), timeout=seconds)
    return [
        Stuck(
            room=item.room,
            stage=item.stage,
            reason=item.reason,
            subject_type=item.subject_type,
            subject_id=item.subject_id,
            since=datetime.fromtimestamp(item.since_ms / 1000, UTC),
            copies=item.copies,
            job_id=item.job_id,
            attempts=item.attempts,
            lost_leases=item.lost_leases,
            error_reason=item.error_reason,
        )
        for item in answer.items
    ]


def ask_figures(channels: Channels, room: str, *, seconds: float = _LIST_SECONDS) -> list[Told]:
    """Ask a room what its processes counted lately; raises the room's error, or Unavailable."""
    with channels.asking(room):
        stub = channels.stub(room, operations_pb2_grpc.OperationServiceStub)
        answer = stub.TellFigures(operations_pb2.TellFiguresRequest(), timeout=seconds)
    return [
        Told(one.process, one.service, one.seconds, {(item.name, item.label): item.value for item in one.figures})
        for one in answer.processes
    ]


def intervene(
    channels: Channels, asked: Asked, *, room: str = "", seconds: float = _ACT_SECONDS
) -> operations_pb2.InterveneResponse:
    """Ask the room that acts; raises the room's error, or Unavailable."""
    acting = room or ACTIONS[asked.action]
    with channels.asking(acting):
        return channels.stub(acting, operations_pb2_grpc.OperationServiceStub).Intervene(
            operations_pb2.InterveneRequest(
                uid=asked.uid,
                action=asked.action,
                target=operations_pb2.Target(kind=asked.kind, id=asked.id),
                reason=asked.reason,
                dry_run=asked.is_dry_run,
                actor=asked.actor,
                approver=asked.approver,
            ),
            timeout=seconds,
        )
