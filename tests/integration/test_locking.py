"""The lock of a copy on a real PostgreSQL: one holder, by lease and fence, whatever clients and sweeps do at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.grading_copies import LEAVES, Desk, annotation
from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_grading.flows import annotating, finalize, locking, scoring
from korrigo_grading.flows.locking import Wish
from korrigo_kit.auth import Principal
from korrigo_kit.errors import KorrigoError
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_protos.render.v1 import events_pb2

STALE = 600


@pytest.fixture(scope="module")
def room(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradingRoom]:
    served = GradingRoom(postgres_server, Path(tmp_path_factory.mktemp("grading")))
    yield served
    served.close()


@pytest.fixture(scope="module")
def desk(room: GradingRoom) -> Desk:
    return Desk(room.rt)


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """Return (status, reason) of a call that must be refused."""
    with pytest.raises(KorrigoError) as refused:
        call()
    return refused.value.status, refused.value.reason


def conflicts(room: GradingRoom, kind: str) -> float:
    """Read the counter of lock conflicts."""
    text = room.anonymous().get("/metrics").text
    line = next(x for x in text.splitlines() if x.startswith(f'grading_lock_conflicts_total{{conflict_type="{kind}"}}'))
    return float(line.split()[1])


# ------------------------------------------------------------------------------------------------------ events
def test_a_lock_and_its_end_are_told_exactly(desk: Desk) -> None:
    ada = desk.person("marker")
    copy_id = desk.ready(ada)
    held = locking.acquire(desk.rt, ada, copy_id, Wish(ttl_seconds=60, client_id="tab-1"))
    assert (held.is_new, held.fence, held.owner_name) == (True, 1, ada.username)
    row = desk.copy(copy_id)
    assert (row["status"], str(row["locked_by"]), str(row["assigned_corrector_id"])) == (
        "LOCKED", ada.user_id, ada.user_id,
    )  # fmt: skip
    locking.release(desk.rt, ada, copy_id, held.token)
    locking.release(desk.rt, ada, copy_id, held.token)
    told = desk.acts(copy_id)[1:]
    assert told == [
        ("LOCK", {"token_prefix": held.token[:8], "ttl_seconds": 60, "client_id": "tab-1"}),
        ("UNLOCK", {"reason": "released", "previous_owner_id": ada.user_id, "held_seconds": 0}),
    ]
    row = desk.copy(copy_id)
    assert (row["status"], row["locked_by"]) == ("READY", None)
    assert str(row["assigned_corrector_id"]) == ada.user_id, "the assignment stays"
    assert desk.sql("SELECT 1 AS n FROM copy_locks WHERE copy_id = %s", copy_id) == []


def test_no_token_is_stored(desk: Desk) -> None:
    copy_id = desk.ready()
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish())
    [row] = desk.sql("SELECT copy_locks::text AS row FROM copy_locks WHERE copy_id = %s", copy_id)
    assert held.token not in row["row"]
    events = desk.sql("SELECT outbox::text AS row FROM outbox WHERE subject_id = %s", copy_id)
    assert not [1 for event in events if held.token in event["row"]]


def test_the_same_tab_gets_its_token_again(desk: Desk) -> None:
    copy_id = desk.ready()
    first = locking.acquire(desk.rt, desk.admin, copy_id, Wish(client_id="tab-1", ttl_seconds=30))
    again = locking.acquire(desk.rt, desk.admin, copy_id, Wish(client_id="tab-1", ttl_seconds=90))
    shown = locking.acquire(desk.rt, desk.admin, copy_id, Wish(token=first.token, client_id="tab-9"))
    assert {first.token, again.token, shown.token} == {first.token}
    assert (again.is_new, again.fence, again.expires_in) == (False, first.fence, 90)
    assert refusal(lambda: locking.acquire(desk.rt, desk.admin, copy_id, Wish(client_id="tab-2"))) == (409, "LOCK_HELD")
    assert refusal(lambda: locking.acquire(desk.rt, desk.admin, copy_id, Wish())) == (409, "LOCK_HELD")
    assert desk.actions(copy_id) == ["VALIDATE", "LOCK"]


def test_whoever_is_in_the_way_is_named(room: GradingRoom, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    ada, lead = desk.person("marker"), desk.person("lead_marker")
    copy_id = desk.ready(ada)
    locking.acquire(desk.rt, ada, copy_id, Wish())
    desk.age_lock(copy_id, 100)
    before = conflicts(room, "already_locked")
    with pytest.raises(KorrigoError) as refused, caplog.at_level(logging.WARNING, "grading"):
        locking.acquire(desk.rt, lead, copy_id, Wish())
    said = refused.value.metadata
    assert said["owner"] == {"id": ada.user_id, "username": ada.username}
    assert (said["same_user"], said["stale"]) == (False, False) and 100 <= said["age"] < 110
    assert conflicts(room, "already_locked") == before + 1
    assert "Copy is locked by another user" in caplog.text and ada.username not in caplog.text


@pytest.mark.parametrize(
    ("prepare", "conflict", "expected"),
    [
        ("unlock", "missing", (409, "LOCK_MISSING")),
        ("expire", "expired", (409, "LOCK_EXPIRED")),
        ("other", "owner_mismatch", (409, "LOCK_OWNER_MISMATCH")),
        ("token", "token_mismatch", (403, "INVALID_LOCK_TOKEN")),
        ("none", "token_mismatch", (403, "INVALID_LOCK_TOKEN")),
    ],
)
def test_a_write_without_its_lease_is_refused_and_counted(
    room: GradingRoom, desk: Desk, prepare: str, conflict: str, expected: tuple[int, str]
) -> None:
    copy_id = desk.ready()
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish(ttl_seconds=100))
    caller, token = desk.admin, held.token
    if prepare == "unlock":
        locking.release(desk.rt, desk.admin, copy_id, held.token)
    if prepare == "expire":
        desk.age_lock(copy_id, 101)
    if prepare == "other":
        caller = desk.person("lead_marker")
    offered = {"token": "0" * 64, "none": None}.get(prepare, token)
    before = conflicts(room, conflict)
    assert refusal(lambda: annotating.create(desk.rt, caller, copy_id, offered, annotation())) == expected
    assert refusal(lambda: scoring.write(desk.rt, caller, copy_id, offered, {}, lambda _: None)) == expected
    assert refusal(lambda: finalize.request(desk.rt, caller, copy_id, offered, lambda *_: None)) == expected
    on_heartbeat = 404 if prepare in ("unlock", "expire") else expected[0]
    assert refusal(lambda: locking.heartbeat(desk.rt, caller, copy_id, offered)) == (on_heartbeat, expected[1])
    assert conflicts(room, conflict) == before + 4
    assert desk.sql("SELECT 1 AS n FROM annotations WHERE copy_id = %s", copy_id) == []


def test_a_heartbeat_prolongs_and_never_revives(desk: Desk) -> None:
    copy_id = desk.ready()
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish(ttl_seconds=100))
    desk.age_lock(copy_id, 90)
    assert locking.heartbeat(desk.rt, desk.admin, copy_id, held.token).expires_in == 100
    desk.age_lock(copy_id, 101)
    assert refusal(lambda: locking.heartbeat(desk.rt, desk.admin, copy_id, held.token)) == (404, "LOCK_EXPIRED")
    again = locking.acquire(desk.rt, desk.admin, copy_id, Wish())
    assert again.fence == held.fence + 1 and again.token != held.token
    assert desk.actions(copy_id) == ["VALIDATE", "LOCK", "UNLOCK", "LOCK"]


# ------------------------------------------------------------------------------------------------------ takeover
def test_who_may_take_over(desk: Desk) -> None:
    ada, bob = desk.person("marker"), desk.person("marker")
    lead, other_lead = desk.person("lead_marker"), desk.person("lead_marker")
    copy_id = desk.ready(ada, bob)
    first = locking.acquire(desk.rt, lead, copy_id, Wish())
    assert refusal(lambda: locking.take_over(desk.rt, ada, copy_id, Wish())) == (409, "LOCK_HELD")
    own = locking.take_over(desk.rt, lead, copy_id, Wish(client_id="tab-2"))
    assert own.fence == first.fence + 1
    assert (
        refusal(lambda: annotating.create(desk.rt, lead, copy_id, first.token, annotation()))[1] == "INVALID_LOCK_TOKEN"
    )
    desk.age_lock(copy_id, STALE + 1)
    stale = locking.take_over(desk.rt, other_lead, copy_id, Wish())
    by_admin = locking.take_over(desk.rt, desk.admin, copy_id, Wish())
    assert [own.fence, stale.fence, by_admin.fence] == [2, 3, 4]
    told = [(m["reason"], m["previous_owner_id"]) for action, m in desk.acts(copy_id) if action == "UNLOCK"]
    assert told == [("takeover", lead.user_id), ("takeover", lead.user_id), ("takeover", other_lead.user_id)]
    assert desk.copy(copy_id)["assigned_corrector_id"] is None, "only a marker's lock assigns"
    desk.age_lock(copy_id, STALE + 1)
    locking.take_over(desk.rt, ada, copy_id, Wish())
    assert refusal(lambda: locking.take_over(desk.rt, bob, copy_id, Wish())) == (403, "NOT_ASSIGNED")


def test_who_may_lock(desk: Desk) -> None:
    ada, bob, stranger = (desk.person("marker") for _ in range(3))
    copy_id = desk.ready(ada, bob)
    assert refusal(lambda: locking.acquire(desk.rt, stranger, copy_id, Wish())) == (404, "COPY_NOT_FOUND")
    for role in ("student", "auditor", "scan_operator"):
        assert refusal(lambda role=role: locking.acquire(desk.rt, desk.person(role), copy_id, Wish())) == (  # type: ignore[misc]
            403, "FORBIDDEN",
        )  # fmt: skip
    locking.release(desk.rt, ada, copy_id, locking.acquire(desk.rt, ada, copy_id, Wish()).token)
    assert refusal(lambda: locking.acquire(desk.rt, bob, copy_id, Wish())) == (403, "NOT_ASSIGNED")
    locking.acquire(desk.rt, desk.person("lead_marker"), copy_id, Wish())
    staged = desk.stage(desk.exam(ada))
    assert refusal(lambda: locking.acquire(desk.rt, ada, staged, Wish())) == (409, "INVALID_STATUS")


# ------------------------------------------------------------------------------------------------------ sweep
def test_the_sweep_ends_leases_and_mends_what_was_deleted_by_hand(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    ended, orphan, forced, live = (desk.ready() for _ in range(4))
    for copy_id in (ended, orphan, forced, live):
        locking.acquire(desk.rt, desk.admin, copy_id, Wish(ttl_seconds=100))
    desk.age_lock(ended, 300)
    desk.sql("DELETE FROM copy_locks WHERE copy_id = %s", orphan)
    # As korrigo.playbook's trigger does for a DELETE by SQL.
    desk.sql("UPDATE copy_locks SET expires_at = 'epoch' WHERE copy_id = %s", forced)
    with caplog.at_level(logging.INFO, "grading"):
        assert locking.sweep(desk.rt) >= 3
    assert f"Expired lock released for copy {ended}" in caplog.text
    assert [desk.copy(c)["status"] for c in (ended, orphan, forced, live)] == ["READY", "READY", "READY", "LOCKED"]
    for copy_id, reason in ((ended, "expired"), (orphan, "reconciled"), (forced, "forced")):
        _, metadata = desk.acts(copy_id)[-1]
        assert (metadata["reason"], metadata["previous_owner_id"]) == (reason, desk.admin.user_id)
        [leaf] = desk.sql(
            "SELECT convert_from(leaf, 'UTF8')::jsonb ->> 'actor_id' AS actor FROM outbox WHERE subject_id = %s"
            " ORDER BY source_seq DESC LIMIT 1",
            copy_id,
        )
        assert leaf["actor"] == SYSTEM_ACTOR
    assert 300 <= desk.acts(ended)[-1][1]["held_seconds"] < 310
    assert locking.sweep(desk.rt) == 0


def test_two_sweeps_at_once_end_a_lease_once(desk: Desk) -> None:
    found = [desk.ready() for _ in range(8)]
    for copy_id in found:
        locking.acquire(desk.rt, desk.admin, copy_id, Wish(ttl_seconds=100))
        desk.age_lock(copy_id, 300)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: locking.sweep(desk.rt), range(4))) == len(found)
    assert {tuple(desk.actions(copy_id)) for copy_id in found} == {("VALIDATE", "LOCK", "UNLOCK")}


def test_an_admin_ends_a_lock_with_a_reason(desk: Desk) -> None:
    ada = desk.person("marker")
    copy_id = desk.ready(ada)
    held = locking.acquire(desk.rt, ada, copy_id, Wish())
    assert refusal(lambda: locking.force(desk.rt, ada, copy_id, "mine"))[0] == 403
    assert refusal(lambda: locking.force(desk.rt, desk.admin, copy_id, " ")) == (422, "REASON_REQUIRED")
    locking.force(desk.rt, desk.admin, copy_id, "Zoé went home")
    action, metadata = desk.acts(copy_id)[-1]
    assert (action, metadata["reason"], metadata["previous_owner_id"]) == ("UNLOCK", "forced", ada.user_id)
    assert len(metadata["reason_commitment"]) == 64
    assert refusal(lambda: annotating.create(desk.rt, ada, copy_id, held.token, annotation()))[1] == "LOCK_MISSING"
    assert refusal(lambda: locking.force(desk.rt, desk.admin, copy_id, "again")) == (404, "LOCK_MISSING")


# ------------------------------------------------------------------------------------------------------ at once
def test_of_sixteen_one_gets_the_lock(desk: Desk) -> None:
    people = [desk.person("lead_marker") for _ in range(16)]
    for _ in range(5):
        copy_id = desk.ready()
        barrier = threading.Barrier(len(people))

        def attempt(person: Principal, copy_id: str = copy_id, barrier: threading.Barrier = barrier) -> str:
            barrier.wait(20)
            try:
                locking.acquire(desk.rt, person, copy_id, Wish())
            except KorrigoError as error:
                return error.reason
            return "granted"

        with ThreadPoolExecutor(len(people)) as pool:
            assert sorted(pool.map(attempt, people)) == [*["LOCK_HELD"] * 15, "granted"]
        assert desk.actions(copy_id) == ["VALIDATE", "LOCK"] and desk.copy(copy_id)["fence"] == 1


def test_of_sixteen_one_finalises(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    copy_id = desk.ready()
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish())
    points = dict.fromkeys(LEAVES, 1)
    scoring.write(desk.rt, desk.admin, copy_id, held.token, {"scores": points}, lambda _: None)
    barrier = threading.Barrier(16)

    def attempt(_: int) -> str:
        barrier.wait(20)
        try:
            finalize.request(desk.rt, desk.admin, copy_id, held.token, lambda *_: None)
        except KorrigoError as error:
            return error.reason
        return "requested"

    with caplog.at_level(logging.WARNING, "grading"), ThreadPoolExecutor(16) as pool:
        answers = sorted(pool.map(attempt, range(16)))
    assert answers == [*["FINALIZE_IN_PROGRESS"] * 15, "requested"]
    assert len(desk.sql("SELECT 1 AS n FROM finalisations WHERE copy_id = %s", copy_id)) == 1
    line = f"Copy {copy_id} already graded (concurrent finalization detected) - rejecting duplicate request"
    assert line in caplog.text
    assert [r.levelname for r in caplog.records if r.getMessage() == "Copy already finalized"] == ["WARNING"] * 15


def test_writers_and_one_who_finalises(desk: Desk) -> None:
    """No annotation is acknowledged that the manifest does not hold: all before, or refused."""
    copy_id = desk.ready()
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish())
    points = dict.fromkeys(LEAVES, 1)
    scoring.write(desk.rt, desk.admin, copy_id, held.token, {"scores": points}, lambda _: None)
    acked: list[str] = []
    refused: list[str] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            try:
                made, _ = annotating.create(desk.rt, desk.admin, copy_id, held.token, annotation())
            except KorrigoError as error:
                refused.append(error.reason)
                return
            acked.append(made.id)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        done = None
        for _ in range(20):
            try:
                done = finalize.request(desk.rt, desk.admin, copy_id, held.token, lambda *_: None)
                break
            except KorrigoError as error:
                # Busy writers may keep it from ever seeing the copy still; it says so and is tried again.
                if error.reason != "DATABASE_BUSY":
                    raise
                if len(acked) > 400:
                    stop.set()
    finally:
        stop.set()
        for writer in writers:
            writer.join(30)
    assert done is not None
    manifest = events_pb2.Manifest.FromString(desk.rt.blobs.read(desk.newest(copy_id)["manifest_sha256"]))
    assert sorted(a.id for a in manifest.annotations) == sorted(acked)
    assert set(refused) <= {"LOCK_MISSING"}
