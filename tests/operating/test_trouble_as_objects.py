"""The operator on a real API server and real rooms: what is stuck is shown, healed once, and gone after.

Every test stops its operators; the rooms and the API server serve them all.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from harness.api_server import ApiServer
from harness.grading_copies import LEAVES, Desk
from harness.operators import NAMESPACE, Operators
from harness.servers import Postgres
from harness.whole_rooms import WholeRooms
from korrigo_grading.flows import finalize, locking, scoring
from korrigo_kit.auth import Principal
from korrigo_kit.ids import new_id
from korrigo_kit.outbox import OPERATOR_ACTOR
from korrigo_operator.sweeping.sweep import ALONE_SECONDS

# Many steps, each through several processes.
pytestmark = pytest.mark.timeout(1200)
HOUR_AGO = "clock_timestamp() - interval '1 hour'"


@pytest.fixture(scope="module")
def operators(
    api_server: ApiServer, postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    """The rooms, and the namespace with everything the operator needs."""
    rooms = WholeRooms(postgres_server, tmp_path_factory.mktemp("whole"))
    try:
        made = Operators(api_server, rooms)
        yield made
        made.end()
    finally:
        rooms.close()


@pytest.fixture(scope="module")
def desk(operators: Operators) -> Desk:
    """Grading as its neighbours see it."""
    return Desk(operators.rooms["grading"])


@pytest.fixture(autouse=True)
def clean(operators: Operators) -> Iterator[None]:
    """Begin with the policy as it ships and without objects; end every operator."""
    operators.policy()
    yield
    operators.end()
    for plural in ("stuckcopies", "interventions", "incidents", "gradingpolicies"):
        operators.api.remove_all(plural, NAMESPACE)
    _settle(operators.rooms)


def _settle(rooms: WholeRooms) -> None:
    rooms.sql("UPDATE grading.copies SET status = 'READY' WHERE status IN ('GRADING_FAILED', 'LOCKED')")
    rooms.sql("DELETE FROM grading.copy_locks")
    rooms.sql("UPDATE grading.copies SET deleted_at = clock_timestamp() WHERE status = 'GRADING_IN_PROGRESS'")
    for room in ("grading", "ingest", "audit", "render"):
        rooms.sql(f"DELETE FROM {room}.interventions")
    rooms.sql("DELETE FROM ingest.scans")
    rooms.sql("DELETE FROM ingest.jobs")


def _failed(rooms: WholeRooms, desk: Desk, reason: str) -> str:
    """Make a copy whose final PDF failed for good an hour ago."""
    copy_id = desk.ready()
    held = locking.acquire(rooms["grading"], desk.admin, copy_id, locking.Wish())
    given = {"scores": dict.fromkeys(LEAVES, 2.5)}
    scoring.write(rooms["grading"], desk.admin, copy_id, held.token, given, lambda _: None)
    finalize.request(rooms["grading"], desk.admin, copy_id, held.token, lambda _tx, _done: None)
    rooms.sql(
        "UPDATE grading.finalisations SET state = 'FAILED', error_reason = %s WHERE copy_id = %s", reason, copy_id
    )
    rooms.sql(
        f"UPDATE grading.copies SET status = 'GRADING_FAILED', grading_retries = 3, updated_at = {HOUR_AGO}"
        " WHERE id = %s",
        copy_id,
    )
    return copy_id


def _locked(rooms: WholeRooms, desk: Desk) -> tuple[str, Principal]:
    marker = desk.person("marker")
    copy_id = desk.ready(marker)
    locking.acquire(rooms["grading"], marker, copy_id, locking.Wish())
    return copy_id, marker


def _lost_lock(rooms: WholeRooms, desk: Desk) -> str:
    """Make a copy whose lock somebody deleted by hand."""
    copy_id, _ = _locked(rooms, desk)
    rooms.sql("DELETE FROM grading.copy_locks WHERE copy_id = %s", copy_id)
    rooms.sql(f"UPDATE grading.copies SET updated_at = {HOUR_AGO} WHERE id = %s", copy_id)
    return copy_id


def _scan(rooms: WholeRooms, reason: str) -> str:
    scan, job = new_id(), new_id()
    rooms.sql(
        "INSERT INTO ingest.jobs (id, kind, subject_id, payload, state, attempts, error_reason, request_id,"
        f" traceparent, finished_at) VALUES (%s, 'import', %s, '{{}}', 'QUARANTINED', 3, %s, 'r', '', {HOUR_AGO})",
        job, scan, reason,
    )  # fmt: skip
    rooms.sql(
        "INSERT INTO ingest.scans (id, exam_id, state, filename, sha256, size, split_mode, pages_per_booklet,"
        " split_horizontal, uploaded_by, job_id, error_reason) VALUES (%s, %s, 'FAILED', 'x.pdf', %s, 9, 'A4_single',"
        " 0, true, %s, %s, %s)",
        scan, new_id(), "ab" * 32, new_id(), job, reason,
    )  # fmt: skip
    return scan


def _state(rooms: WholeRooms, copy_id: str) -> str:
    return str(rooms.sql("SELECT status FROM grading.copies WHERE id = %s", copy_id)[0][0])


def _jobs(rooms: WholeRooms, scan_id: str) -> tuple[Any, ...]:
    return rooms.sql("SELECT state, attempts FROM ingest.jobs WHERE subject_id = %s", scan_id)[0]


def _acts(rooms: WholeRooms) -> list[tuple[str, str, int]]:
    """Return (room, action, how many) of the acts that the operator had done."""
    return [
        (room, action, number)
        for room in ("ingest", "grading")
        for action, number in rooms.sql(
            f"SELECT action, count(*) FROM {room}.interventions WHERE actor_id = %s GROUP BY 1 ORDER BY 1",
            OPERATOR_ACTOR,
        )
    ]


def _one_more_sweep(operators: Operators) -> None:
    before = operators.status("gradingpolicies", "default").get("lastSweepTime")
    operators.until("a sweep", lambda: operators.status("gradingpolicies", "default").get("lastSweepTime") != before)


def _document(kind: str, name: str, spec: dict[str, Any] | None) -> dict[str, Any]:
    head = {"apiVersion": "korrigo.io/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}}
    return head if spec is None else head | {"spec": spec}


# ---------------------------------------------------------------------------------------------- the definitions
def test_the_api_server_refuses_what_cannot_be(operators: Operators) -> None:
    api, everything = operators.api, {"kind": "all"}
    assert "the only policy is named default" in api.refusal(_document("GradingPolicy", "second", {}))
    assert "reason" in api.refusal(_document("Intervention", "x", {"action": "VerifyAudit", "target": everything}))
    blank = {"action": "VerifyAudit", "target": everything, "reason": "      "}
    assert "say why" in api.refusal(_document("Intervention", "x", blank))
    unnamed = {"action": "RetryImport", "target": {"kind": "scan"}, "reason": "because"}
    assert "named by its id" in api.refusal(_document("Intervention", "x", unnamed))
    unknown = {"action": "DropDatabase", "target": everything, "reason": "because"}
    assert "Unsupported value" in api.refusal(_document("Intervention", "x", unknown))
    api.apply(_document("Intervention", "kept", {"action": "VerifyAudit", "target": everything, "reason": "because"}))
    change = json.dumps({"spec": {"reason": "something else"}})
    words = ("-n", NAMESPACE, "patch", "iv", "kept", "--type=merge", "-p", change)
    done = api.kubectl(*words, is_checked=False)
    assert done.returncode != 0
    assert "never changed" in done.stderr
    assert "too long" in api.refusal(_document("GradingPolicy", "default", {"sweepInterval": "1s" * 40})).lower()


# ---------------------------------------------------------------------------------------------- healing
def test_what_is_stuck_is_shown_healed_and_gone(operators: Operators, desk: Desk) -> None:
    rooms = operators.rooms
    hopeless = _failed(rooms, desk, "BUG")
    passing = _scan(rooms, "TIMEOUT")
    lost = _lost_lock(rooms, desk)
    operators.policy(remediation={"exhaustedAfter": "10s"})
    with operators.one() as (_, health):
        operators.until("the lock", lambda: _state(rooms, lost) == "READY")
        operators.until("the import", lambda: _jobs(rooms, passing) == ("READY", 0))
        # it was listed, with what people need
        row = operators.until("its row", lambda: operators.get("stuckcopies", f"finalize-{hopeless}"))
        operators.until("a decision", lambda: operators.phase("stuckcopies", f"finalize-{hopeless}") == "NeedsPerson")
        assert row["spec"] | {"copyId": hopeless, "reason": "retries_exhausted", "errorReason": "BUG"} == row["spec"]
        assert row["spec"]["anonymousId"]
        table = operators.kubectl("get", "stuck")
        assert f"finalize-{hopeless}" in table
        assert "NeedsPerson" in table
        # what never succeeds is left to a person: still failed, and nothing was tried
        assert _state(rooms, hopeless) == "GRADING_FAILED"
        operators.until("resolved", lambda: operators.phase("stuckcopies", f"lock-{lost}") == "Resolved")
        operators.until("resolved", lambda: operators.phase("stuckcopies", f"import-{passing}") == "Resolved")
        assert _acts(rooms) == [("ingest", "RetryImport", 1), ("grading", "ReleaseExpiredLocks", 1)]
        # ten minutes later the object is gone
        old = json.dumps({"status": {"resolvedTime": "2026-01-01T00:00:00Z"}})
        operators.kubectl("patch", "stuck", f"lock-{lost}", "--subresource=status", "--type=merge", "-p", old)
        operators.until("gone", lambda: operators.get("stuckcopies", f"lock-{lost}") is None)
        policy = operators.status("gradingpolicies", "default")
        conditions = {found["type"]: found["status"] for found in policy["conditions"]}
        assert conditions["Ready"] == "True"
        assert conditions["Acting"] == "True"
        assert httpx.get(f"http://127.0.0.1:{health}/healthz", trust_env=False).status_code == 200
        events = operators.kubectl("get", "events", "-o", "custom-columns=R:.reason,O:.involvedObject.name")
        assert "NeedsPerson" in events
        assert "Resolved" in events


def test_a_person_asks_by_annotation_and_it_is_done_once(operators: Operators, desk: Desk) -> None:
    rooms = operators.rooms
    copy_id = _failed(rooms, desk, "BUG")
    name = f"finalize-{copy_id}"
    with operators.one():
        operators.until("its row", lambda: operators.phase("stuckcopies", name) == "NeedsPerson")
        operators.kubectl("annotate", "stuck", name, "korrigo.io/action=retry")
        operators.until("the copy", lambda: _state(rooms, copy_id) == "GRADING_IN_PROGRESS")
        (made,) = [found for found in operators.list("interventions") if found["spec"]["target"].get("id") == copy_id]
        operators.until("its status", lambda: operators.phase("interventions", made["metadata"]["name"]) == "Succeeded")
        row = operators.get("stuckcopies", name)
        assert row is None or "korrigo.io/action" not in row["metadata"].get("annotations", {})


def test_two_people_end_a_live_lock(operators: Operators, desk: Desk) -> None:
    rooms = operators.rooms
    copy_id, marker = _locked(rooms, desk)
    first, second = desk.person("admin"), desk.person("admin")
    spec = {
        "action": "ForceUnlock", "target": {"kind": "copy", "id": copy_id}, "reason": "the room is needed",
        "requestedBy": first.username,
    }  # fmt: skip
    with operators.one():
        operators.api.apply(_document("Intervention", "unlock", spec))
        operators.until("waiting", lambda: operators.phase("interventions", "unlock") == "AwaitingApproval")
        for nobody in (first.username, marker.username):
            operators.kubectl("annotate", "iv", "unlock", "--overwrite", f"korrigo.io/approved-by={nobody}")
            _one_more_sweep(operators)
            assert operators.phase("interventions", "unlock") == "AwaitingApproval"
            assert _state(rooms, copy_id) == "LOCKED"
        operators.kubectl("annotate", "iv", "unlock", "--overwrite", f"korrigo.io/approved-by={second.username}")
        operators.until("done", lambda: operators.phase("interventions", "unlock") == "Succeeded")
    assert _state(rooms, copy_id) == "READY"
    status = operators.status("interventions", "unlock")
    assert status["approvedBy"] == second.username
    assert len(status["eventIds"]) == 1


def test_the_pause_annotation_and_the_modes_keep_their_word(operators: Operators, desk: Desk) -> None:
    rooms = operators.rooms
    lost = _lost_lock(rooms, desk)
    operators.policy(remediation={"mode": "Suggest"})
    with operators.one():
        operators.until("suggested", lambda: operators.phase("stuckcopies", f"lock-{lost}") == "NeedsPerson")
        assert operators.status("stuckcopies", f"lock-{lost}")["suggestedAction"] == "ReleaseExpiredLocks"
        operators.kubectl("annotate", "stuck", f"lock-{lost}", "korrigo.io/reconcile=paused")
        operators.policy(remediation={"mode": "Auto"})
        operators.until("paused", lambda: operators.phase("stuckcopies", f"lock-{lost}") == "Open")
        assert _state(rooms, lost) == "LOCKED"
        assert _acts(rooms) == []
        operators.kubectl("annotate", "stuck", f"lock-{lost}", "korrigo.io/reconcile-")
        operators.until("healed", lambda: _state(rooms, lost) == "READY")


def _lose_two_without_a_policy(operators: Operators, desk: Desk) -> list[str]:
    """Take a paused policy away and lose two locks; none when it took until the operator makes a policy of its own."""
    operators.policy(paused=True)
    _one_more_sweep(operators)
    operators.api.remove_all("gradingpolicies", NAMESPACE)
    began = time.monotonic()
    lost = []
    for _ in range(2):  # the second is seen by a sweep that began after one that saw the first had ended
        lost.append(_lost_lock(operators.rooms, desk))
        operators.until("its row", partial(operators.get, "stuckcopies", f"lock-{lost[-1]}"))
    states = [_state(operators.rooms, copy_id) for copy_id in lost]
    if time.monotonic() - began > ALONE_SECONDS:
        return []
    assert states == ["LOCKED", "LOCKED"]
    return lost


def test_what_was_paused_stays_so_while_an_installer_makes_the_policy_anew(operators: Operators, desk: Desk) -> None:
    with operators.one():
        lost = next(filter(None, (_lose_two_without_a_policy(operators, desk) for _ in range(5))), [])
        assert lost, "this machine is too slow to see what happens within a minute"
        operators.policy()
        operators.until("healed", lambda: all(_state(operators.rooms, copy_id) == "READY" for copy_id in lost))


# ---------------------------------------------------------------------------------------------- two, killed, cut off
def test_two_operators_that_both_act_heal_each_copy_once(operators: Operators, desk: Desk) -> None:
    """Under one name both hold the lease: what keeps them from doing it twice is the uid alone."""
    rooms = operators.rooms
    lost = [_lost_lock(rooms, desk) for _ in range(3)]
    scans = [_scan(rooms, "TIMEOUT") for _ in range(5)]
    operators.policy(remediation={"exhaustedAfter": "10s"})
    operators.start("same")
    operators.start("same")
    operators.until("the locks", lambda: all(_state(rooms, copy_id) == "READY" for copy_id in lost))
    operators.until("the imports", lambda: all(_jobs(rooms, scan) == ("READY", 0) for scan in scans))
    operators.until(
        "all told",
        lambda: all(found.get("status", {}).get("phase") == "Succeeded" for found in operators.list("interventions")),
    )
    assert _acts(rooms) == [("ingest", "RetryImport", 5), ("grading", "ReleaseExpiredLocks", 3)]
    told = rooms.sql("SELECT count(*) FROM ingest.outbox WHERE action = 'INTERVENTION' AND subject_type = 'scan'")
    told_of = rooms.sql("SELECT count(*) FROM ingest.interventions WHERE state = 'SUCCEEDED'")
    assert told[0][0] >= told_of[0][0] == 5


def test_killed_at_any_moment_it_leaves_nothing_wrong(operators: Operators, desk: Desk) -> None:
    rooms = operators.rooms
    lost = [_lost_lock(rooms, desk) for _ in range(4)]
    scans = [_scan(rooms, "TIMEOUT") for _ in range(8)]
    hopeless = _failed(rooms, desk, "BUG")
    operators.policy(remediation={"exhaustedAfter": "10s", "budget": {"perSweep": 2}})
    for moment in range(6):
        child, _ = operators.start()
        marks = len(operators.list("interventions")) + len(operators.list("stuckcopies"))
        deadline = time.monotonic() + 60
        # killed as soon as it has begun to write, each time some steps later
        while time.monotonic() < deadline:
            now = len(operators.list("interventions")) + len(operators.list("stuckcopies"))
            if now > marks + moment or all(_state(rooms, copy_id) == "READY" for copy_id in lost):
                break
        child.kill()
    with operators.one():
        operators.until("the locks", lambda: all(_state(rooms, copy_id) == "READY" for copy_id in lost))
        operators.until("the imports", lambda: all(_jobs(rooms, scan) == ("READY", 0) for scan in scans))
        operators.until("a status of all", lambda: all("status" in found for found in operators.list("stuckcopies")))
        operators.until(
            "all told",
            lambda: all(
                found.get("status", {}).get("phase") == "Succeeded" for found in operators.list("interventions")
            ),
        )
    assert _acts(rooms) == [("ingest", "RetryImport", 8), ("grading", "ReleaseExpiredLocks", 4)]
    assert _state(rooms, hopeless) == "GRADING_FAILED"
    assert list(operators.temporary.iterdir()) == [], "what it wrote outlived it"


def test_the_api_server_may_go_away_and_come_back(operators: Operators, desk: Desk) -> None:
    rooms = operators.rooms
    with operators.one() as (child, _):
        operators.until("a sweep", lambda: operators.status("gradingpolicies", "default").get("lastSweepTime"))
        operators.api.kill_api_server()
        lost = _lost_lock(rooms, desk)
        operators.api.wait()
        operators.until("healed", lambda: _state(rooms, lost) == "READY")
        operators.until("shown", lambda: operators.phase("stuckcopies", f"lock-{lost}") == "Resolved")
        # its watch hears again, too
        copy_id = _failed(rooms, desk, "BUG")
        operators.until("its row", lambda: operators.phase("stuckcopies", f"finalize-{copy_id}") == "NeedsPerson")
        operators.kubectl("annotate", "stuck", f"finalize-{copy_id}", "korrigo.io/action=retry")
        operators.until("the copy", lambda: _state(rooms, copy_id) == "GRADING_IN_PROGRESS")
        assert child.is_running()


# ---------------------------------------------------------------------------------------------- bounds
def test_ten_thousand_stuck_rows_are_two_hundred_objects(operators: Operators) -> None:
    rooms = operators.rooms
    rooms.sql(
        "INSERT INTO ingest.jobs (id, kind, subject_id, payload, state, attempts, error_reason, request_id,"
        " traceparent, finished_at) SELECT gen_random_uuid(), 'import', gen_random_uuid()::text, '{}', 'QUARANTINED',"
        f" 3, 'BUG', 'r', '', {HOUR_AGO} FROM generate_series(1, 10000)"
    )
    rooms.sql(
        "INSERT INTO ingest.scans (id, exam_id, state, filename, sha256, size, split_mode, pages_per_booklet,"
        " split_horizontal, uploaded_by, job_id, error_reason) SELECT subject_id::uuid, gen_random_uuid(), 'FAILED',"
        " 'x.pdf', repeat('ab', 32), 9, 'A4_single', 0, true, gen_random_uuid(), id, 'BUG' FROM ingest.jobs"
    )
    with operators.one():
        operators.until("the count", lambda: operators.status("gradingpolicies", "default").get("stuck") == 10_000)
        shown = [one["spec"]["scanId"] for one in operators.list("stuckcopies")]
        assert len(shown) == 200
        # those are healed, and the next are shown: still no more, though the healed would stay for ten minutes
        rooms.sql("DELETE FROM ingest.jobs WHERE subject_id = ANY(%s)", shown)
        rooms.sql("DELETE FROM ingest.scans WHERE id = ANY(%s::uuid[])", shown)
        operators.until("the count", lambda: operators.status("gradingpolicies", "default").get("stuck") == 9_800)
        others = [one["spec"]["scanId"] for one in operators.list("stuckcopies")]
        assert len(others) == 200
        assert not set(others) & set(shown)
        # What nobody can heal is left alone; that the trail of these rooms lacks events is looked into in any case.
        assert {one["spec"]["action"] for one in operators.list("interventions")} <= {"VerifyAudit"}


def test_a_namespace_with_all_four_kinds_goes_at_once(operators: Operators, desk: Desk) -> None:
    rooms = operators.rooms
    _failed(rooms, desk, "BUG")
    group = new_id()
    rooms.sql(
        "INSERT INTO grading.alert_groups (id, group_key, labels, started_at)"
        " VALUES (%s, 'k', '{}', clock_timestamp())",
        group,
    )
    labels = {"alertname": "WorkersDown", "priority": "P0", "severity": "critical"}
    rooms.sql(
        "INSERT INTO grading.alerts (group_id, fingerprint, started_at, labels, annotations)"
        " VALUES (%s, 'f', clock_timestamp() - interval '20 minutes', %s, %s)",
        group, json.dumps(labels), json.dumps({"summary": "nobody works"}),
    )  # fmt: skip
    rooms.sql(
        "UPDATE grading.alert_groups SET started_at = clock_timestamp() - interval '20 minutes' WHERE id = %s", group
    )
    operators.api.apply(
        _document("Intervention", "look", {"action": "VerifyAudit", "target": {"kind": "all"}, "reason": "because"})
    )
    with operators.one():
        incident = operators.until("the incident", lambda: next(iter(operators.list("incidents")), None))
        name = incident["metadata"]["name"]
        status = operators.until("its status", lambda: operators.status("incidents", name))
        assert (status["phase"], status["level"]) == ("Firing", 3)
        assert "WorkersDown: nobody works" in status["report"]
        operators.until("verified", lambda: operators.phase("interventions", "look") in ("Succeeded", "Failed"))
        operators.until("a row", lambda: operators.list("stuckcopies"))
        try:
            operators.api.kubectl("delete", "namespace", NAMESPACE, "--timeout=100s")
        except (AssertionError, subprocess.TimeoutExpired):
            left = operators.kubectl("get", "korrigo", "-o", "name")
            state = operators.kubectl("get", "namespace", NAMESPACE, "-o", "jsonpath={.status}")
            pytest.fail(f"the namespace hangs with {left}\n{state}\n{operators.api.told()}")
    rooms.sql("DELETE FROM grading.alert_groups")
    operators.make_namespace()
