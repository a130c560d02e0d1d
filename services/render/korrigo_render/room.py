"""Wiring of render."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from korrigo_kit.room import Room, Runtime
from korrigo_render import settings
from korrigo_render.consumer import subscriptions
from korrigo_render.tasks import tasks

if TYPE_CHECKING:
    import grpc

    from korrigo_kit.interventions import Verb
    from korrigo_kit.stuck import Stuck


def _servicers(rt: Runtime) -> Sequence[Callable[[grpc.Server], None]]:
    from korrigo_kit import operations
    from korrigo_protos.render.v1 import render_pb2_grpc
    from korrigo_render.rpc import RenderService

    return [
        lambda server: render_pb2_grpc.add_RenderServiceServicer_to_server(RenderService(rt), server),
        operations.service(rt),
    ]


def _interventions(rt: Runtime) -> Mapping[str, Verb]:
    from korrigo_render import rpc

    return rpc.verbs(rt)


def _stuck(rt: Runtime) -> Sequence[Stuck]:
    from korrigo_render.flows import stuck

    return stuck.found(rt)


ROOM = Room(
    name="render",
    migrations=Path(__file__).parent / "migrations",
    settings=settings.SECTIONS,
    servicers=_servicers,
    subscriptions=subscriptions,
    tasks=tasks,
    stuck=_stuck,
    interventions=_interventions,
    sandbox_preload=("korrigo_render.engine.append", "korrigo_render.engine.verify"),
)
