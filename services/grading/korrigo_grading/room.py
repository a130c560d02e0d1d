"""Wiring of grading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from korrigo_grading import settings
from korrigo_kit.room import Periodic, Room, Runtime

if TYPE_CHECKING:
    import grpc
    from fastapi import APIRouter

    from korrigo_kit.inbox import Subscription
    from korrigo_kit.interventions import Verb
    from korrigo_kit.stuck import Stuck
    from korrigo_kit.telemetry.metrics import GaugeSource


def _routers(rt: Runtime) -> Sequence[APIRouter]:
    from korrigo_grading import rest

    return rest.routers()


def _servicers(rt: Runtime) -> Sequence[Callable[[grpc.Server], None]]:
    from korrigo_grading.rpc import AccountService, AlertService, ExamService
    from korrigo_kit import operations
    from korrigo_protos.grading.v1 import grading_pb2_grpc

    return [
        lambda server: grading_pb2_grpc.add_ExamServiceServicer_to_server(ExamService(rt), server),
        lambda server: grading_pb2_grpc.add_AccountServiceServicer_to_server(AccountService(rt), server),
        lambda server: grading_pb2_grpc.add_AlertServiceServicer_to_server(AlertService(rt), server),
        operations.service(rt),
    ]


def _interventions(rt: Runtime) -> Mapping[str, Verb]:
    from korrigo_grading import rpc

    return rpc.verbs(rt)


def _periodic(rt: Runtime) -> Sequence[Periodic]:
    from korrigo_grading.flows import alerting, locking, sessions

    return [
        # As often as the sweeper comes round: a copy whose lock ended is free within seconds.
        Periodic("locks", 10, locking.sweep),
        Periodic("prune-logins", 600, sessions.prune),
        Periodic("prune-alerts", 3600, alerting.prune),
    ]


def _subscriptions(rt: Runtime) -> Sequence[Subscription]:
    from korrigo_grading.consumer import subscriptions

    return subscriptions(rt)


def _stuck(rt: Runtime) -> Sequence[Stuck]:
    from korrigo_grading.flows import stuck

    return stuck.found(rt)


def _gauges(rt: Runtime) -> Sequence[GaugeSource]:
    from korrigo_grading.metrics import gauges

    return gauges(rt)


ROOM = Room(
    name="grading",
    migrations=Path(__file__).parent / "migrations",
    settings=settings.SECTIONS,
    routers=_routers,
    servicers=_servicers,
    subscriptions=_subscriptions,
    periodic=_periodic,
    gauges=_gauges,
    stuck=_stuck,
    interventions=_interventions,
)
