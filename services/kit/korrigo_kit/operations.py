"""gRPC face that every room has for those who keep it running: what is stuck, and acts of healing.

Both sides are here: `service` for a room's servicers, the functions for the command line, grading's summary and the
operator.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc

from korrigo_kit import interventions, stuck, vitals
from korrigo_kit.interventions import ACTIONS, Asked
from korrigo_kit.rpc import Channels
from korrigo_kit.stuck import Stuck
from korrigo_kit.telemetry import figures
from korrigo_kit.telemetry.figures import Told
from korrigo_kit.vitals import Vitals
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
        listed = stuck.oldest_first(found)[:limit]
        with self._rt.db.transaction() as tx:
            listed = vitals.with_tries(tx, listed)
        return operations_pb2.ListStuckResponse(
            items=[_item(item) for item in listed],
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

    def GetVitals(  # noqa: N802 - the protocol's name
        self, request: operations_pb2.GetVitalsRequest, context: grpc.ServicerContext
    ) -> operations_pb2.GetVitalsResponse:
        """Tell what healers did lately, and whether events get out."""
        seen = vitals.vitals(self._rt.db)
        return operations_pb2.GetVitalsResponse(
            now_ms=_ms(seen.now),
            outbox_waiting=seen.outbox_waiting,
            outbox_oldest_seconds=seen.outbox_oldest_seconds,
            acts_last_hour=seen.acts_last_hour,
            acts_failed=seen.acts_failed,
            acts_failed_at_ms=_ms(seen.acts_failed_at),
            acted_at_ms=_ms(seen.acted_at),
            acts_unproven=seen.acts_unproven,
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
        since_ms=_ms(item.since),
        copies=item.copies,
        job_id=item.job_id,
        attempts=item.attempts,
        lost_leases=item.lost_leases,
        error_reason=item.error_reason,
        exam_id=item.exam_id,
        anonymous_id=item.anonymous_id,
        tried=item.tried,
        tried_at_ms=_ms(item.tried_at),
    )


def _ms(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment else 0


def _moment(milliseconds: int) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def list_stuck(channels: Channels, room: str, *, seconds: float = _LIST_SECONDS, limit: int = 0) -> list[Stuck]:
    """Ask a room what is stuck there, oldest first; raises the room's error, or Unavailable."""
    return list_and_count(channels, room, seconds=seconds, limit=limit)[0]


def list_and_count(
    channels: Channels, room: str, *, seconds: float = _LIST_SECONDS, limit: int = 0
) -> tuple[list[Stuck], dict[tuple[str, str], int]]:
    """Ask a room for the oldest that is stuck, and for how many copies are by (stage, reason), all of them."""
    with channels.asking(room):
        stub = channels.stub(room, operations_pb2_grpc.OperationServiceStub)
        answer = stub.ListStuck(operations_pb2.ListStuckRequest(limit=limit), timeout=seconds)
    return _stuck(answer), {(found.stage, found.reason): found.copies for found in answer.counts}


def _stuck(answer: operations_pb2.ListStuckResponse) -> list[Stuck]:
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
            exam_id=item.exam_id,
            anonymous_id=item.anonymous_id,
            tried=item.tried,
            tried_at=_moment(item.tried_at_ms),
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


def get_vitals(channels: Channels, room: str, *, seconds: float = _LIST_SECONDS) -> Vitals:
    """Ask a room how it is; raises the room's error, or Unavailable."""
    with channels.asking(room):
        stub = channels.stub(room, operations_pb2_grpc.OperationServiceStub)
        answer = stub.GetVitals(operations_pb2.GetVitalsRequest(), timeout=seconds)
    return Vitals(
        now=datetime.fromtimestamp(answer.now_ms / 1000, UTC),
        outbox_waiting=answer.outbox_waiting,
        outbox_oldest_seconds=answer.outbox_oldest_seconds,
        acts_last_hour=answer.acts_last_hour,
        acts_failed=answer.acts_failed,
        acts_failed_at=_moment(answer.acts_failed_at_ms),
        acted_at=_moment(answer.acted_at_ms),
        acts_unproven=answer.acts_unproven,
    )


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
