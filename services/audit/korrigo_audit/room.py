"""Wiring of audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from korrigo_audit import settings
from korrigo_audit.consumer import subscriptions
from korrigo_audit.flows import append
from korrigo_kit.room import Periodic, Room, Runtime

if TYPE_CHECKING:
    import grpc
    from fastapi import APIRouter

    from korrigo_kit.interventions import Verb
    from korrigo_kit.telemetry.metrics import GaugeSource


def _routers(rt: Runtime) -> Sequence[APIRouter]:
    from korrigo_audit import rest

    return rest.routers


def _servicers(rt: Runtime) -> Sequence[Callable[[grpc.Server], None]]:
    from korrigo_audit.rpc import AuditService
    from korrigo_kit import operations
    from korrigo_protos.audit.v1 import audit_pb2_grpc

    return [
        lambda server: audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(rt), server),
        operations.service(rt),
    ]


def _interventions(rt: Runtime) -> Mapping[str, Verb]:
    from korrigo_audit import rpc

    return rpc.verbs(rt)


def _gauges(rt: Runtime) -> Sequence[GaugeSource]:
    from korrigo_audit.flows import chain, completeness
    from korrigo_audit.metrics import gauges

    return gauges(lambda: completeness.missing(rt), lambda: chain.is_valid(rt))


def _periodic(rt: Runtime) -> Sequence[Periodic]:
    from korrigo_audit.flows import chain

    return (Periodic("verify-chain", 60.5, chain.verify_next),)


ROOM = Room(
    name="audit",
    migrations=Path(__file__).parent / "migrations",
    settings=settings.SECTIONS,
    routers=_routers,
    servicers=_servicers,
    subscriptions=subscriptions,
    periodic=_periodic,
    gauges=_gauges,
    interventions=_interventions,
    hears_itself=append.hear,
)
