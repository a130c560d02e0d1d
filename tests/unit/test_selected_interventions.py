"""An Intervention about many copies keeps the lease and the liveness probe fed, and stops when the lease is lost."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from harness.kept_objects import KeptObjects
from korrigo_kit.errors import Unavailable
from korrigo_kit.interventions import Asked
from korrigo_kit.rpc import Channels
from korrigo_kit.settings import load
from korrigo_operator import asking
from korrigo_operator.asking import Rooms
from korrigo_operator.sweeping import interventions, stuck_copies
from korrigo_operator.sweeping.interventions import Doer
from korrigo_protos.common.v1.operations_pb2 import InterveneResponse

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NUMBER = 20


class SlowRooms(Rooms):
    """Notes what it is asked for."""

    def __init__(self, order: list[str]) -> None:
        super().__init__(Channels(load(environ={"KORRIGO_RPC__SECRET": "s" * 32}).rpc, "operator"))
        self._order = order

    def act(self, asked: Asked, *, seconds: float = asking.ACT_SECONDS) -> InterveneResponse:
        self._order.append(asked.uid)
        return InterveneResponse(state="SUCCEEDED", affected=1)


@pytest.fixture
def cluster() -> KeptObjects:
    """Twenty stuck scans, and somebody who wants them all tried again."""
    kept = KeptObjects(NOW)
    for number in range(NUMBER):
        scan = f"00000000-0000-7000-8000-{number:012d}"
        spec = {"stage": "import", "reason": "lost_task", "room": "ingest", "scanId": scan, "since": NOW.isoformat()}
        kept.create(stuck_copies.PLURAL, "StuckCopy", {"name": f"import-{scan}"}, spec)
    wish = {"action": "RetryImport", "target": {"kind": "selected"}, "reason": "the disk has room again"}
    kept.create(interventions.PLURAL, "Intervention", {"name": "all"}, wish)
    return kept


class Leader:
    """Holds the lease until it was asked so often; then it is lost, or the API server is away."""

    def __init__(self, order: list[str], times: int, error: Unavailable | None = None) -> None:
        self._order = order
        self._times = times
        self._error = error

    def __call__(self) -> bool:
        self._order.append("lease")
        self._times -= 1
        if self._times < 0 and self._error is not None:
            raise self._error
        return self._times >= 0


def do(cluster: KeptObjects, order: list[str], leader: Leader) -> tuple[int, str]:
    stuck = {item["metadata"]["name"]: item for item in cluster.list(stuck_copies.PLURAL)}
    doer = Doer(cluster, SlowRooms(order), NOW, leader)
    failed = doer.reconcile(cluster.list(interventions.PLURAL), stuck, is_paused=False)
    return failed, str(cluster.list(interventions.PLURAL)[0]["status"]["phase"])


def test_the_lease_is_looked_at_before_every_target(cluster: KeptObjects) -> None:
    order: list[str] = []
    assert do(cluster, order, Leader(order, 1000)) == (0, "Succeeded")
    assert len([one for one in order if one != "lease"]) == NUMBER
    assert all(before == "lease" for before, one in pairwise(order) if one != "lease")


@pytest.mark.parametrize("error", [None, Unavailable("API_SERVER_UNAVAILABLE", "away")])
def test_whoever_lost_the_lease_leaves_the_rest_to_the_next(cluster: KeptObjects, error: Unavailable | None) -> None:
    first: list[str] = []
    assert do(cluster, first, Leader(first, 6, error)) == (int(error is not None), "Running")
    done = [one for one in first if one != "lease"]
    assert 0 < len(done) < NUMBER
    second: list[str] = []
    assert do(cluster, second, Leader(second, 1000)) == (0, "Succeeded")
    again = [one for one in second if one != "lease"]
    assert (len(again), again[: len(done)]) == (NUMBER, done), "by the same uids, so that nothing is done twice"


def test_an_act_ends_before_the_lease() -> None:
    """The lease is renewed when a third of it is over, and an act may begin just before that."""
    lease = 30
    assert lease / 3 + asking.ACT_SECONDS < lease
