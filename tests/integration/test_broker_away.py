"""A broker that lets nobody in costs an attempt and nothing else: who asks for ten minutes leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from harness.processes import free_port, wait_for
from korrigo_kit.broker import EventPublisher
from korrigo_kit.errors import Unavailable
from korrigo_kit.ids import new_id
from korrigo_kit.ring import Bells
from korrigo_kit.settings import Settings, load
from korrigo_protos.common.v1 import event_pb2

Use = Callable[[Settings], Callable[[], None]]


@pytest.fixture
def settings() -> Settings:
    """The embedded broker in a database that does not answer."""
    return load(
        environ={
            "KORRIGO_DATABASE__URL": f"postgresql://korrigo:x@127.0.0.1:{free_port()}/korrigo",
            "KORRIGO_BROKER__URL": "pgmq://",
            "KORRIGO_RPC__SECRET": "only for this test, 32 characters",
        }
    )


def _publish(settings: Settings) -> Callable[[], None]:
    publisher = EventPublisher(settings)
    return lambda: publisher.publish([event_pb2.Event(id=new_id(), source="render", type="recorded")])


def _ring(settings: Settings) -> Callable[[], None]:
    bells = Bells(settings, "render")
    return lambda: bells.ring([new_id()])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("use", [_publish, _ring])
def test_a_refused_attempt_leaves_no_pool_behind(settings: Settings, use: Use) -> None:
    """Each pool has threads that go on connecting for minutes: together they took the whole database along."""

    def pools() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("pool-")]

    before = pools()
    attempt = use(settings)
    for _ in range(2):
        with pytest.raises(Unavailable, match="BROKER_UNAVAILABLE"):
            attempt()
    wait_for("the pools' threads to end", lambda: pools() == before, seconds=15)
