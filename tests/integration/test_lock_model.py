"""A mutex with a lease as a model, and the lock of a copy held against it on a real PostgreSQL."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from harness.grading_copies import LEAVES, Desk, annotation
from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_grading.flows import annotating, finalize, locking, scoring
from korrigo_grading.flows.locking import Wish
from korrigo_kit.auth import Principal
from korrigo_kit.errors import KorrigoError

SOAK = os.environ.get("KORRIGO_TEST_SOAK") == "1"
TTL = 1000
STALE = 600


@pytest.fixture(scope="module")
def room(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradingRoom]:
    served = GradingRoom(postgres_server, Path(tmp_path_factory.mktemp("grading")))
    yield served
    served.close()


@pytest.fixture(scope="module")
def desk(room: GradingRoom) -> Desk:
    return Desk(room.rt)


@dataclass
class Holder:
    """The lock as the model has it; seconds since the grant or the last heartbeat."""

    person: Principal
    client: str
    token: str
    fence: int
    silent: int = 0

    @property
    def is_live(self) -> bool:
        return self.silent < TTL


class LockMachine(RuleBasedStateMachine):
    """A mutex with a lease beside the real thing: every answer must be the model's."""

    desk: ClassVar[Desk]
    people: ClassVar[list[Principal]]
    seen: ClassVar[Counter[tuple[str, str]]] = Counter()

    @initialize()
    def begin(self) -> None:
        self.copy_id = self.desk.ready()
        self.holder: Holder | None = None
        self.status = "READY"
        self.fence = 0
        self.tokens: list[tuple[Principal, str]] = [(self.people[0], "0" * 64)]
        self.acked = 0
        self.acts: list[str] = ["VALIDATE"]
        self.revision = 1

    person = st.integers(0, 2)
    client = st.sampled_from(["tab-1", "tab-2"])
    # Mostly the newest token, sometimes the one before, sometimes one that never was.
    token = st.sampled_from([-1, -1, -1, -2, 0])

    def _token(self, which: int) -> tuple[Principal, str]:
        return self.tokens[max(which, -len(self.tokens))]

    def _answer(self, what: str, call: Callable[[], Any]) -> tuple[Any, str]:
        try:
            answer, reason = call(), "ok"
        except KorrigoError as error:
            answer, reason = None, error.reason
        self.seen[what, reason] += 1
        return answer, reason

    def _granted(self, person: Principal, client: str, held: locking.Held) -> None:
        self.fence += 1
        assert held.is_new and held.fence == self.fence
        assert held.token not in [token for _, token in self.tokens]
        self.holder = Holder(person, client, held.token, held.fence)
        self.tokens.append((person, held.token))
        self.status = "LOCKED"

    def _refusal(self, person: Principal, token: str) -> str:
        """What the model says against a holder's call."""
        if self.holder is None:
            return "LOCK_MISSING"
        if not self.holder.is_live:
            return "LOCK_EXPIRED"
        if self.holder.person != person:
            return "LOCK_OWNER_MISMATCH"
        return "ok" if self.holder.token == token else "INVALID_LOCK_TOKEN"

    @precondition(lambda self: self.status in ("READY", "LOCKED"))
    @rule(who=person, client=client)
    def acquire(self, who: int, client: str) -> None:
        person = self.people[who]
        held, reason = self._answer(
            "acquire",
            lambda: locking.acquire(self.desk.rt, person, self.copy_id, Wish(ttl_seconds=TTL, client_id=client)),
        )
        if self.holder is None or not self.holder.is_live:
            assert reason == "ok"
            self.acts += ["UNLOCK", "LOCK"] if self.status == "LOCKED" else ["LOCK"]
            self._granted(person, client, held)
        elif (self.holder.person, self.holder.client) == (person, client):
            assert reason == "ok" and (held.is_new, held.token) == (False, self.holder.token)
            self.holder.silent = 0
        else:
            assert reason == "LOCK_HELD"

    @precondition(lambda self: self.status in ("READY", "LOCKED"))
    @rule(who=person, client=client)
    def take_over(self, who: int, client: str) -> None:
        person = self.people[who]
        held, reason = self._answer(
            "take_over",
            lambda: locking.take_over(self.desk.rt, person, self.copy_id, Wish(ttl_seconds=TTL, client_id=client)),
        )
        holder = self.holder
        yields = (
            holder is None
            or not holder.is_live
            or holder.person == person
            or person.has("admin")
            or holder.silent >= STALE
        )
        assert reason == ("ok" if yields else "LOCK_HELD")
        if yields:
            self.acts += ["UNLOCK", "LOCK"] if self.status == "LOCKED" else ["LOCK"]
            self._granted(person, client, held)

    @precondition(lambda self: self.holder is not None)
    @rule(which=token)
    def heartbeat(self, which: int) -> None:
        person, token = self._token(which)
        _, reason = self._answer("heartbeat", lambda: locking.heartbeat(self.desk.rt, person, self.copy_id, token))
        assert reason == self._refusal(person, token)
        if reason == "ok" and self.holder:
            self.holder.silent = 0

    @precondition(lambda self: self.holder is not None)
    @rule(which=token)
    def write(self, which: int) -> None:
        person, token = self._token(which)
        _, reason = self._answer(
            "write", lambda: annotating.create(self.desk.rt, person, self.copy_id, token, annotation())
        )
        assert reason == self._refusal(person, token)
        if reason == "ok":
            self.acked += 1
            self.acts.append("CREATE_ANN")

    @precondition(lambda self: self.holder is not None)
    @rule(which=token)
    def release(self, which: int) -> None:
        person, token = self._token(which)
        _, reason = self._answer("release", lambda: locking.release(self.desk.rt, person, self.copy_id, token))
        expected = self._refusal(person, token)
        if expected in ("LOCK_MISSING", "LOCK_EXPIRED"):
            assert reason == "ok"
            return
        assert reason == expected
        if reason == "ok":
            self._free()

    def _free(self) -> None:
        self.holder, self.status = None, "READY"
        self.acts.append("UNLOCK")

    @precondition(lambda self: self.holder is None)
    @rule(which=token)
    def come_without_a_lock(self, which: int) -> None:
        for call in (self.heartbeat, self.write, self.release, self.finalise):
            call(which)

    @precondition(lambda self: self.holder is not None)
    @rule(which=token)
    def come_too_late(self, which: int) -> None:
        self.time_goes_by(TTL)
        for call in (self.heartbeat, self.write, self.finalise):
            call(which)

    @precondition(lambda self: self.holder is not None)
    @rule(seconds=st.sampled_from([300, 700, TTL]))
    def time_goes_by(self, seconds: int) -> None:
        self.desk.age_lock(self.copy_id, seconds)
        if self.holder:
            self.holder.silent += seconds

    @rule()
    def sweep(self) -> None:
        done = locking.sweep(self.desk.rt)
        over = self.status == "LOCKED" and (self.holder is None or not self.holder.is_live)
        assert done == over
        if over:
            self._free()

    @precondition(lambda self: self.holder is not None)
    @rule(by_hand=st.booleans())
    def force(self, by_hand: bool) -> None:
        if by_hand:
            self.desk.sql("DELETE FROM copy_locks WHERE copy_id = %s", self.copy_id)
            self.holder = None
        else:
            locking.force(self.desk.rt, self.desk.admin, self.copy_id, "as the model wants")
            self._free()

    @precondition(lambda self: self.holder is not None or self.status == "GRADING_IN_PROGRESS")
    @rule(which=token)
    def finalise(self, which: int) -> None:
        person, token = self._token(which)
        expected = self._refusal(person, token)
        if expected == "ok":
            points = dict.fromkeys(LEAVES, 1)
            if self.revision == 1:
                scoring.write(self.desk.rt, person, self.copy_id, token, {"scores": points}, lambda _: None)
                self.acts.append("SCORE")
        _, reason = self._answer(
            "finalise", lambda: finalize.request(self.desk.rt, person, self.copy_id, token, lambda *_: None)
        )
        if self.status in ("GRADING_IN_PROGRESS", "GRADED"):
            assert reason in ("FINALIZE_IN_PROGRESS", "COPY_ALREADY_GRADED")
            return
        assert reason == expected
        if reason == "ok":
            self.holder, self.status = None, "GRADING_IN_PROGRESS"

    @precondition(lambda self: self.status == "GRADING_IN_PROGRESS")
    @rule()
    def render_and_reopen(self) -> None:
        self.desk.rendered(self.copy_id, b"%PDF-1.7 as if")
        finalize.reopen(self.desk.rt, self.desk.admin, self.copy_id, "on with it")
        self.acts += ["FINALIZE", "REOPEN"]
        self.status, self.revision = "READY", self.revision + 1

    @invariant()
    def the_rows_are_the_models(self) -> None:
        [row] = self.desk.sql(
            "SELECT c.status, c.fence, c.revision, (SELECT count(*) FROM annotations a WHERE a.copy_id = c.id) AS made,"
            " (SELECT array_agg(a.fence ORDER BY a.created_at) FROM annotations a WHERE a.copy_id = c.id) AS fences,"
            " (SELECT l.fence FROM copy_locks l WHERE l.copy_id = c.id) AS held FROM copies c WHERE c.id = %s",
            self.copy_id,
        )
        assert (row["status"], row["fence"], row["revision"]) == (self.status, self.fence, self.revision)
        assert row["made"] == self.acked
        assert row["held"] == (self.holder.fence if self.holder else None)
        assert (row["fences"] or []) == sorted(row["fences"] or []), "a write under an older fence came later"

    def teardown(self) -> None:
        if hasattr(self, "copy_id"):
            assert self.desk.actions(self.copy_id) == self.acts
            self.desk.sql("DELETE FROM copy_locks WHERE copy_id = %s", self.copy_id)
            locking.sweep(self.desk.rt)


@pytest.mark.timeout(14_400 if SOAK else 300)
def test_the_lock_is_a_mutex_with_a_lease(desk: Desk) -> None:
    """2 000 examples of 50 steps with KORRIGO_TEST_SOAK=1, 1/20 of that otherwise (reliability.md 15)."""
    LockMachine.desk = desk
    LockMachine.people = [desk.person("lead_marker"), desk.person("lead_marker"), desk.admin]
    locking.sweep(desk.rt)
    run_state_machine_as_test(
        LockMachine,
        settings=settings(
            max_examples=2_000 if SOAK else 100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # A machine that never met a case has shown nothing about it.
    met = {reason for _, reason in LockMachine.seen}
    refusals = {"LOCK_MISSING", "LOCK_EXPIRED", "LOCK_OWNER_MISMATCH", "INVALID_LOCK_TOKEN", "LOCK_HELD"}
    assert met >= {"ok", "FINALIZE_IN_PROGRESS"} | refusals, LockMachine.seen
    for what in ("acquire", "take_over", "heartbeat", "write", "release", "finalise"):
        assert LockMachine.seen[what, "ok"], what
