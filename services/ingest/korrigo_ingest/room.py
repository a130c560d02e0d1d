"""Wiring of ingest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from korrigo_ingest import settings
from korrigo_ingest.consumer import subscriptions
from korrigo_ingest.flows.scaling import clean_spool
from korrigo_ingest.tasks import tasks
from korrigo_kit.room import Periodic, Room, Runtime

if TYPE_CHECKING:
    import grpc
    from fastapi import APIRouter

    from korrigo_kit.interventions import Verb
    from korrigo_kit.stuck import Stuck
    from korrigo_kit.telemetry.metrics import GaugeSource


def _routers(rt: Runtime) -> Sequence[APIRouter]:
    from korrigo_ingest import rest

    return rest.routers


def _servicers(rt: Runtime) -> Sequence[Callable[[grpc.Server], None]]:
    from korrigo_ingest.rpc import ScanService
    from korrigo_kit import operations
    from korrigo_protos.ingest.v1 import ingest_pb2_grpc

    return [
        lambda server: ingest_pb2_grpc.add_ScanServiceServicer_to_server(ScanService(rt), server),
        operations.service(rt),
    ]


def _interventions(rt: Runtime) -> Mapping[str, Verb]:
    from korrigo_ingest import rpc

    return rpc.verbs(rt)


def _periodic(rt: Runtime) -> Sequence[Periodic]:
    from korrigo_ingest.flows import retrying

    return (Periodic("clean-spool", 600, clean_spool), Periodic("jobless-imports", 10, retrying.give_jobs))


def _gauges(rt: Runtime) -> Sequence[GaugeSource]:
    from korrigo_ingest.flows.scaling import spool
    from korrigo_ingest.metrics import gauges

    return gauges(lambda: spool(rt))


def _stuck(rt: Runtime) -> Sequence[Stuck]:
    from korrigo_ingest.flows import stuck

    return stuck.found(rt)


ROOM = Room(
    name="ingest",
    migrations=Path(__file__).parent / "migrations",
    settings=settings.SECTIONS,
    routers=_routers,
    servicers=_servicers,
    subscriptions=subscriptions,
    tasks=tasks,
    periodic=_periodic,
    gauges=_gauges,
    stuck=_stuck,
    interventions=_interventions,
    sandbox_preload=(
        "korrigo_ingest.engine.inspection",
        "korrigo_ingest.engine.cutting",
        "korrigo_ingest.engine.pictures",
        "korrigo_ingest.engine.scaling",
    ),
)
