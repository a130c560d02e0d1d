"""Interventions on real rooms over gRPC: done once for a uid, by whom, approved by whom, told in the audit trail."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import pytest

from harness.grading_copies import LEAVES, Desk
from harness.orders import ask, make_scan, told
from harness.processes import clean_environment, wait_for
from harness.whole_rooms import WholeRooms
from korrigo_audit.flows import completeness, listing, verification
from korrigo_grading.flows import finalize, locking, scoring
from korrigo_kit import operations, outbox
from korrigo_kit.auth import Principal
from korrigo_kit.errors import Forbidden, Invalid, KorrigoError, NotFound, StateConflict, Unavailable
from korrigo_kit.ids import new_id
from korrigo_kit.interventions import ACTIONS, Asked
from korrigo_kit.rpc import Channels
from korrigo_kit.telemetry.metrics import interventions_total, operator_actions_total
from korrigo_protos.common.v1.operations_pb2 import InterveneResponse
from korrigo_protos.grading.v1.events_pb2 import Recorded


@pytest.fixture(scope="module")
def desk(rooms: WholeRooms) -> Desk:
    """Grading as its neighbours see it."""
    return Desk(rooms["grading"])


def _locked(rooms: WholeRooms, desk: Desk) -> tuple[str, Principal]:
    marker = desk.person("marker")
    copy_id = desk.ready(marker)
    locking.acquire(rooms["grading"], marker, copy_id, locking.Wish())
    return copy_id, marker


def _failed(rooms: WholeRooms, desk: Desk) -> str:
    """Make a copy whose first request for a final PDF failed for good, without render ever having heard of it."""
    copy_id = desk.ready()
    held = locking.acquire(rooms["grading"], desk.admin, copy_id, locking.Wish())
    given = {"scores": dict.fromkeys(LEAVES, 2.5)}
    scoring.write(rooms["grading"], desk.admin, copy_id, held.token, given, lambda _: None)
    finalize.request(rooms["grading"], desk.admin, copy_id, held.token, lambda _tx, _done: None)
    rooms.sql("UPDATE grading.finalisations SET state = 'FAILED', error_reason = 'BUG' WHERE copy_id = %s", copy_id)
    rooms.sql("UPDATE grading.copies SET status = 'GRADING_FAILED', grading_retries = 3 WHERE id = %s", copy_id)
    return copy_id


def _interventions(rooms: WholeRooms, room: str, subject_id: str) -> list[dict[str, object]]:
    return [leaf for leaf in told(rooms, room, subject_id) if leaf["action"] == "INTERVENTION"]


# ---------------------------------------------------------------------------------------------- once
def test_the_same_uid_acts_once_and_tells_the_same_again(rooms: WholeRooms, channels: Channels) -> None:
    scan = make_scan(rooms, "FAILED", "TIMEOUT", "QUARANTINED")
    uid = new_id()
    first = ask(channels, "RetryImport", "scan", scan, uid=uid)
    assert (first.state, first.affected, first.refused, first.is_replayed) == ("SUCCEEDED", 1, 0, False)
    assert rooms.sql("SELECT state, attempts FROM ingest.jobs WHERE subject_id = %s", scan) == [("READY", 0)]
    # it fails again: the old order must not start it once more
    rooms.sql("UPDATE ingest.scans SET state = 'FAILED', error_reason = 'TIMEOUT' WHERE id = %s", scan)
    rooms.sql("UPDATE ingest.jobs SET state = 'QUARANTINED' WHERE subject_id = %s", scan)
    again = ask(channels, "RetryImport", "scan", scan, uid=uid)
    assert again.is_replayed and again.event_ids == first.event_ids and again.items == first.items
    assert rooms.sql("SELECT state FROM ingest.jobs WHERE subject_id = %s", scan) == [("QUARANTINED",)]
    acts = [leaf["action"] for leaf in told(rooms, "ingest", scan)]
    assert acts == ["RETRY", "INTERVENTION"]
    # another uid is another order
    assert not ask(channels, "RetryImport", "scan", scan).is_replayed
    assert rooms.sql("SELECT state FROM ingest.jobs WHERE subject_id = %s", scan) == [("READY",)]


def test_many_at_once_with_one_uid_are_one(rooms: WholeRooms, channels: Channels) -> None:
    scan = make_scan(rooms, "FAILED", "BUG", "FAILED")
    uid = new_id()
    start = threading.Barrier(8)

    def one(_: int) -> InterveneResponse:
        start.wait(10)
        return ask(channels, "RetryImport", "scan", scan, uid=uid)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    assert [answer.state for answer in answers] == ["SUCCEEDED"] * 8
    assert sum(not answer.is_replayed for answer in answers) == 1
    assert len({tuple(answer.event_ids) for answer in answers}) == 1
    assert [leaf["action"] for leaf in told(rooms, "ingest", scan)] == ["RETRY", "INTERVENTION"]


def test_who_goes_on_after_a_crash_does_not_hit_the_next_holder(
    rooms: WholeRooms, desk: Desk, channels: Channels
) -> None:
    """The first process ended the lock and died before it could say so; by now another works on the copy."""
    copy_id, _ = _locked(rooms, desk)
    rooms.sql("UPDATE grading.copy_locks SET heartbeat_at = now() - interval '20 minutes' WHERE copy_id = %s", copy_id)
    uid, admin = new_id(), desk.person("admin")
    assert ask(channels, "ForceUnlock", "copy", copy_id, uid=uid).state == "SUCCEEDED"
    rooms.sql(
        "UPDATE grading.interventions SET state = 'RUNNING', result = NULL, lease_until = now() - interval '1 second'"
        " WHERE uid = %s", uid,
    )  # fmt: skip
    locking.acquire(rooms["grading"], admin, copy_id, locking.Wish())
    rooms.sql("UPDATE grading.copy_locks SET heartbeat_at = now() - interval '20 minutes' WHERE copy_id = %s", copy_id)
    answer = ask(channels, "ForceUnlock", "copy", copy_id, uid=uid)
    assert answer.state == "SUCCEEDED" and "ended by itself" in answer.items[0].note
    assert rooms.sql("SELECT owner_id::text FROM grading.copy_locks WHERE copy_id = %s", copy_id) == [(admin.user_id,)]


def test_one_that_is_being_done_is_waited_for(rooms: WholeRooms, channels: Channels) -> None:
    scan = make_scan(rooms, "FAILED", "BUG", "FAILED")
    uid = new_id()
    first = ask(channels, "RetryImport", "scan", scan, uid=uid)
    kept = rooms.sql("SELECT state, result::text FROM ingest.interventions WHERE uid = %s", uid)[0]
    rooms.sql(
        "UPDATE ingest.interventions SET state = 'RUNNING', result = NULL, lease_until = now() + interval '1 minute'"
        " WHERE uid = %s", uid,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, channels, "RetryImport", "scan", scan, uid=uid)
        with pytest.raises(FutureTimeout):
            waiting.result(timeout=1)
        rooms.sql("UPDATE ingest.interventions SET state = %s, result = %s::jsonb WHERE uid = %s", *kept, uid)
        answer = waiting.result(timeout=20)
    assert answer.is_replayed and answer.event_ids == first.event_ids


def test_a_uid_stands_for_one_order(rooms: WholeRooms, channels: Channels) -> None:
    scan, other = make_scan(rooms, "FAILED", "BUG", "FAILED"), make_scan(rooms, "FAILED", "BUG", "FAILED")
    uid = new_id()
    ask(channels, "RetryImport", "scan", scan, uid=uid)
    with pytest.raises(StateConflict, match="UID_REUSED"):
        ask(channels, "RetryImport", "scan", other, uid=uid)


def test_a_dry_run_changes_nothing_and_does_not_use_up_the_uid(rooms: WholeRooms, channels: Channels) -> None:
    scan = make_scan(rooms, "FAILED", "BUG", "FAILED")
    uid = new_id()
    dry = ask(channels, "RetryImport", "scan", scan, uid=uid, is_dry_run=True)
    assert (dry.state, dry.affected, list(dry.event_ids)) == ("DRY_RUN", 1, [])
    assert rooms.sql("SELECT state FROM ingest.scans WHERE id = %s", scan) == [("FAILED",)]
    assert rooms.sql("SELECT count(*) FROM ingest.interventions WHERE uid = %s", uid) == [(0,)]
    assert told(rooms, "ingest", scan) == []
    assert not ask(channels, "RetryImport", "scan", scan, uid=uid).is_replayed


# ---------------------------------------------------------------------------------------------- people
def test_the_lock_of_somebody_at_work_needs_two_admins(rooms: WholeRooms, desk: Desk, channels: Channels) -> None:
    copy_id, marker = _locked(rooms, desk)
    one, two = desk.person("admin"), desk.person("admin")
    uid = new_id()
    assert ask(channels, "ForceUnlock", "copy", copy_id, uid=uid, is_dry_run=True).needs_approval
    refused: list[dict[str, str]] = [
        {},
        {"actor": one.user_id},
        {"approver": two.user_id},
        {"actor": one.user_id, "approver": one.username},
        {"actor": one.user_id, "approver": marker.user_id},
        {"actor": one.user_id, "approver": "nobody-of-that-name"},
        {"actor": marker.username, "approver": two.user_id},
    ]
    for people in refused:
        with pytest.raises(Forbidden):
            ask(channels, "ForceUnlock", "copy", copy_id, uid=uid, **people)
    assert rooms.sql("SELECT count(*) FROM grading.copy_locks WHERE copy_id = %s", copy_id) == [(1,)]
    secret = "the marker fell ill, said her neighbour"
    done = ask(channels, "ForceUnlock", "copy", copy_id, uid=uid, actor=one.username, approver=two.user_id,
                reason=secret)  # fmt: skip
    assert done.state == "SUCCEEDED" and not done.needs_approval
    assert rooms.sql("SELECT status FROM grading.copies WHERE id = %s", copy_id) == [("READY",)]
    (leaf,) = _interventions(rooms, "grading", copy_id)
    metadata = leaf["metadata"]
    assert isinstance(metadata, dict)
    assert leaf["actor_id"] == one.user_id and metadata["approver_id"] == two.user_id
    assert metadata["intervention"] == "ForceUnlock" and metadata["result"] == "SUCCEEDED"
    # what a person typed is committed to, and lies apart
    assert secret not in json.dumps(told(rooms, "grading", copy_id)) and metadata["reason_commitment"]
    assert rooms.sql(
        "SELECT text FROM grading.event_texts WHERE event_id = %s AND key = 'reason'", done.event_ids[0]
    ) == [(secret,)]


def test_a_silent_holders_lock_needs_nobody_else(rooms: WholeRooms, desk: Desk, channels: Channels) -> None:
    copy_id, _ = _locked(rooms, desk)
    rooms.sql("UPDATE grading.copy_locks SET heartbeat_at = now() - interval '11 minutes' WHERE copy_id = %s", copy_id)
    assert ask(channels, "ForceUnlock", "copy", copy_id).affected == 1
    again = ask(channels, "ForceUnlock", "copy", copy_id)
    assert (again.state, again.affected) == ("SUCCEEDED", 0)


@pytest.mark.parametrize(
    ("action", "kind", "id", "more", "error"),
    [
        ("Explode", "all", "", {}, Invalid),
        ("RetryImport", "copy", "x", {}, Invalid),
        ("ForceUnlock", "all", "", {}, Invalid),
        ("VerifyAudit", "all", "", {"reason": "  "}, Invalid),
        ("VerifyAudit", "all", "", {"uid": "short"}, Invalid),
        ("VerifyAudit", "all", "x", {}, Invalid),
        ("ForceUnlock", "copy", "01890000-0000-7000-8000-00000000dead", {}, NotFound),
        ("RetryImport", "scan", "01890000-0000-7000-8000-00000000dead", {}, NotFound),
    ],
)
def test_what_makes_no_sense_is_refused(
    rooms: WholeRooms, channels: Channels, action: str, kind: str, id: str, more: dict[str, str],
    error: type[KorrigoError],
) -> None:  # fmt: skip
    asked = Asked(more.get("uid", new_id()), action, kind, id, more.get("reason", "why"))
    with pytest.raises(error):
        operations.intervene(channels, asked, room=ACTIONS.get(action, "grading"))


# ---------------------------------------------------------------------------------------------- each verb
def test_a_refused_document_stays_refused_and_the_counters_say_so(rooms: WholeRooms, channels: Channels) -> None:
    scan = make_scan(rooms, "REJECTED", "CORRUPTED_PDF", "FAILED")
    failed = interventions_total.labels("failed")._value.get()
    asked = operator_actions_total.labels("RetryImport")._value.get()
    answer = ask(channels, "RetryImport", "scan", scan)
    assert (answer.state, answer.affected, answer.refused) == ("FAILED", 0, 1)
    assert "another file" in answer.items[0].note
    assert interventions_total.labels("failed")._value.get() == failed + 1
    assert operator_actions_total.labels("RetryImport")._value.get() == asked + 1


def test_a_failed_finalisation_is_asked_for_once_more(rooms: WholeRooms, desk: Desk, channels: Channels) -> None:
    copy_id = _failed(rooms, desk)
    answer = ask(channels, "RetryFinalize", "copy", copy_id)
    assert (answer.state, answer.affected) == ("SUCCEEDED", 1), answer
    assert rooms.sql("SELECT status FROM grading.copies WHERE id = %s", copy_id) == [("GRADING_IN_PROGRESS",)]
    # render hears of it, and a copy in work is looked for there instead of being asked for twice
    again = ask(channels, "RetryFinalize", "copy", copy_id)
    assert again.state == "SUCCEEDED" and "rung" in again.items[0].note, again
    requests = "SELECT request FROM grading.finalisations WHERE copy_id = %s ORDER BY request"
    assert rooms.sql(requests, copy_id) == [(1,), (2,)]
    assert rooms.sql(requests.replace("grading.finalisations", "render.renders"), copy_id) == [(1,), (2,)]


def test_ended_leases_are_taken_back_and_live_ones_stay(rooms: WholeRooms, desk: Desk, channels: Channels) -> None:
    over, _ = _locked(rooms, desk)
    live, _ = _locked(rooms, desk)
    rooms.sql("UPDATE grading.copy_locks SET expires_at = now() - interval '1 minute' WHERE copy_id = %s", over)
    answer = ask(channels, "ReleaseExpiredLocks")
    assert over in {item.subject_id for item in answer.items} and live not in {item.subject_id for item in answer.items}
    assert rooms.sql("SELECT status FROM grading.copies WHERE id IN (%s, %s) ORDER BY status", over, live) == [
        ("LOCKED",), ("READY",),
    ]  # fmt: skip


def test_a_lost_record_comes_back_byte_for_byte_and_in_its_place(
    rooms: WholeRooms, desk: Desk, channels: Channels
) -> None:
    copy_id = new_id()
    for number in range(4):
        with rooms["ingest"].db.transaction() as tx:
            outbox.emit(tx, type="recorded", subject=("copy", copy_id), payload=Recorded(), action="IMPORT",
                        metadata={"number": number})  # fmt: skip
    rooms.drain()
    before = rooms.sql("SELECT * FROM audit.records WHERE subject_id = %s ORDER BY seq", copy_id)
    assert len(before) == 4
    rooms.sql("DELETE FROM audit.records WHERE subject_id = %s AND source_seq IN (2, 3)", copy_id)
    audit = rooms["audit"]
    assert not verification.verify_stored(audit.db).is_valid
    found = ask(channels, "VerifyAudit", "copy", copy_id)
    assert (found.state, found.problems) == ("SUCCEEDED", 2)
    with pytest.raises(Forbidden, match="APPROVAL_REQUIRED"):
        ask(channels, "RecreateAuditEvent", "copy", copy_id)
    one, two = desk.person("admin"), desk.person("admin")
    answer = ask(channels, "RecreateAuditEvent", "copy", copy_id, actor=one.user_id, approver=two.user_id)
    assert (answer.state, answer.affected) == ("SUCCEEDED", 2), answer
    appended = "appended_at"
    columns = [row[0] for row in rooms.sql(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'audit' AND table_name = 'records'"
        " ORDER BY ordinal_position"
    )]  # fmt: skip
    at = columns.index(appended)
    after = rooms.sql("SELECT * FROM audit.records WHERE subject_id = %s AND source = 'ingest' ORDER BY seq", copy_id)
    assert [row[:at] + row[at + 1 :] for row in after] == [row[:at] + row[at + 1 :] for row in before]
    assert sum(completeness.missing(audit).values()) == 0
    # audit's own acts stand in its own trail, numbered and hashed as all others, and the whole is sound
    acts = listing.of_subject(audit.db, "copy", copy_id, after_seq=0, limit=20)
    assert acts is not None and [row["action"] for row in acts][-2:] == ["INTERVENTION", "INTERVENTION"]
    assert verification.verify(audit).is_valid


def test_what_no_source_keeps_is_not_made_up(rooms: WholeRooms, desk: Desk, channels: Channels) -> None:
    copy_id = new_id()
    for _ in range(2):
        with rooms["ingest"].db.transaction() as tx:
            outbox.emit(tx, type="recorded", subject=("copy", copy_id), payload=Recorded(), action="IMPORT")
    rooms.drain()
    rooms.sql("DELETE FROM audit.records WHERE subject_id = %s AND source_seq = 1", copy_id)
    rooms.sql("DELETE FROM ingest.outbox WHERE subject_id = %s AND source_seq = 1", copy_id)
    one, two = desk.person("admin"), desk.person("admin")
    answer = ask(channels, "RecreateAuditEvent", "copy", copy_id, actor=one.user_id, approver=two.user_id)
    assert (answer.state, answer.refused) == ("FAILED", 1) and "backup" in answer.items[0].note
    rooms.sql("DELETE FROM audit.records WHERE subject_id = %s", copy_id)
    rooms.sql("DELETE FROM audit.inbox WHERE subject_id = %s", copy_id)


def test_temporary_files_are_cleared_where_ingest_runs(rooms: WholeRooms, channels: Channels) -> None:
    answer = ask(channels, "CleanupTempFiles", is_dry_run=True)
    assert answer.state == "DRY_RUN" and answer.affected in (0, 1)


def test_a_room_that_is_away_fails_nothing_for_good(rooms: WholeRooms, desk: Desk, channels: Channels) -> None:
    copy_id = _failed(rooms, desk)
    ask(channels, "RetryFinalize", "copy", copy_id)
    uid = new_id()
    rooms.hush("render")
    try:
        with pytest.raises(Unavailable):
            ask(channels, "RetryFinalize", "copy", copy_id, uid=uid)
    finally:
        rooms.serve("render")
    wait_for("render", lambda: rooms["grading"].channels.is_serving("render"), seconds=30)
    done = ask(channels, "RetryFinalize", "copy", copy_id, uid=uid)
    assert done.state == "SUCCEEDED" and not done.is_replayed


# ---------------------------------------------------------------------------------------------- what is stuck
def test_a_room_tells_over_the_wire_what_it_lists_itself(rooms: WholeRooms, desk: Desk, channels: Channels) -> None:
    copy_id, _ = _locked(rooms, desk)
    rooms.sql("UPDATE grading.copy_locks SET expires_at = now() - interval '2 minutes' WHERE copy_id = %s", copy_id)
    scan = make_scan(rooms, "FAILED", "TIMEOUT", "QUARANTINED")
    for room in ("ingest", "grading", "render", "audit"):
        own = rooms[room].room.stuck(rooms[room])
        told = operations.list_stuck(channels, room)
        assert [(at.stage, at.reason, at.subject_id, at.copies) for at in told] == [
            (at.stage, at.reason, at.subject_id, at.copies) for at in own
        ], room
    assert copy_id in {item.subject_id for item in operations.list_stuck(channels, "grading")}
    (found,) = (item for item in operations.list_stuck(channels, "ingest") if item.subject_id == scan)
    assert found.reason == "retries_exhausted" and found.error_reason == "TIMEOUT" and found.attempts == 3
    assert len(operations.list_stuck(channels, "ingest", limit=1)) == 1


def test_the_command_line_asks_the_rooms(rooms: WholeRooms, desk: Desk) -> None:
    """Over gRPC alone: this process is given no way into the database."""
    copy_id, _ = _locked(rooms, desk)
    rooms.sql("UPDATE grading.copy_locks SET expires_at = now() - interval '2 minutes' WHERE copy_id = %s", copy_id)
    own = {name: value for name, value in rooms.environ.items() if "DATABASE" not in name and "ADMIN" not in name}
    env = clean_environment() | own | {"KORRIGO_DATABASE__URL": "postgresql://nobody:x@127.0.0.1:1/none"}

    def korrigo(*words: str) -> tuple[int, dict[str, Any]]:
        argv = [sys.executable, "-m", "korrigo", *words, "--json"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    code, found = korrigo("stuck", "--stage", "lock")
    assert code == 9 and found["unreachable"] == []
    assert copy_id in {item["subject_id"] for item in found["items"]}
    words = ("intervene", "ReleaseExpiredLocks", "all", "--reason", "a test", "--uid", new_id())
    assert korrigo(*words, "--dry-run")[1]["state"] == "DRY_RUN"
    code, done = korrigo(*words)
    assert code == 0 and done["state"] == "SUCCEEDED" and copy_id in {item["subject_id"] for item in done["items"]}
    assert korrigo(*words)[1]["is_replayed"] is True
    code, found = korrigo("stuck", "--stage", "lock")
    assert (code, found["copies"]) == (0, 0)
