"""The lock of a copy, code by code (decisions.md, HTTP; domain.md 1.4)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness.client import Client, Json, Lock, Refused, uuid7
from harness.instances import MakeUser
from harness.processes import wait_for
from harness.ready import ready_copy


@pytest.fixture
def copy_id(admin: Client, tmp_path: Path) -> str:
    return str(ready_copy(admin, tmp_path)["id"])


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    """Return (status, reason) of a call that must be refused with a problem document."""
    with pytest.raises(Refused) as refused:
        call()
    assert refused.value.problem["request_id"]
    return refused.value.status, refused.value.reason


def test_a_new_lock_says_everything(admin: Client, copy_id: str) -> None:
    sent = admin.send("POST", f"/api/copies/{copy_id}/lock", json={"ttl_seconds": 120})
    assert sent.status_code == 201
    lock = sent.json()
    assert lock["copy_id"] == copy_id and lock["token"] and lock["status"] == "LOCKED"
    assert lock["owner"] == {"id": admin.user["id"], "username": "admin"}
    assert 110 <= lock["expires_in"] <= 120
    told = datetime.fromisoformat(lock["expires_at"]) - datetime.fromisoformat(lock["server_time"])
    assert 115 <= told.total_seconds() <= 120
    assert admin.copy(copy_id)["status"] == "LOCKED"
    shown = admin.json("GET", f"/api/copies/{copy_id}/lock")
    assert shown["status"] == "LOCKED" and shown["owner"]["id"] == admin.user["id"]
    assert lock["token"] not in str(shown)


def test_the_same_session_refreshes_and_another_tab_is_told(admin: Client, copy_id: str) -> None:
    path = f"/api/copies/{copy_id}/lock"
    first = admin.send("POST", path, json={"client_id": "tab-1"})
    by_client = admin.send("POST", path, json={"client_id": "tab-1"})
    by_token = admin.send("POST", path, json={}, headers={"X-Lock-Token": first.json()["token"]})
    assert [answer.status_code for answer in (first, by_client, by_token)] == [201, 200, 200]
    assert {answer.json()["token"] for answer in (first, by_client, by_token)} == {first.json()["token"]}
    assert {answer.json()["fence"] for answer in (first, by_client, by_token)} == {first.json()["fence"]}
    with pytest.raises(Refused) as refused:
        admin.send("POST", path, json={"client_id": "tab-2"})
    assert (refused.value.status, refused.value.reason) == (409, "LOCK_HELD")
    problem = refused.value.problem
    assert problem["same_user"] is True and problem["owner"]["id"] == admin.user["id"]


def test_another_user_is_refused_with_the_owner(admin: Client, make_user: MakeUser, copy_id: str) -> None:
    admin.lock(copy_id)
    other = make_user("lead_marker")
    with pytest.raises(Refused) as refused:
        other.lock(copy_id)
    assert (refused.value.status, refused.value.reason) == (409, "LOCK_HELD")
    problem = refused.value.problem
    assert problem["owner"] == {"id": admin.user["id"], "username": "admin"}
    assert (problem["same_user"], problem["stale"]) == (False, False)
    assert 0 <= problem["age"] < 60
    # not stale, not the owner: nothing to take over
    assert refusal(lambda: other.send("POST", f"/api/copies/{copy_id}/lock/takeover", json={}))[0] == 409


def test_takeover_by_the_same_user_ends_the_old_token(admin: Client, copy_id: str) -> None:
    old = admin.lock(copy_id)
    taken = admin.json("POST", f"/api/copies/{copy_id}/lock/takeover", json={"client_id": "tab-2"})
    assert taken["token"] != old.token and taken["fence"] > old.fence
    assert refusal(lambda: admin.annotate(old, content="late")) == (403, "INVALID_LOCK_TOKEN")
    admin.annotate(Lock(copy_id, taken["token"], taken["fence"], taken), content="mine")
    assert [a["content"] for a in admin.annotations(copy_id)] == ["mine"]


def test_heartbeat_codes(admin: Client, make_user: MakeUser, copy_id: str) -> None:
    path = f"/api/copies/{copy_id}/lock/heartbeat"
    assert refusal(lambda: admin.send("POST", path, headers={"X-Lock-Token": uuid7()}))[0] == 404
    lock = admin.lock(copy_id, ttl_seconds=60)
    beat = admin.heartbeat(lock)
    assert beat["expires_at"] >= lock.answer["expires_at"] and beat["server_time"]
    assert refusal(lambda: admin.send("POST", path)) == (403, "INVALID_LOCK_TOKEN")
    assert refusal(lambda: admin.send("POST", path, headers={"X-Lock-Token": uuid7()})) == (
        403,
        "INVALID_LOCK_TOKEN",
    )
    other = make_user("lead_marker")
    assert refusal(lambda: other.heartbeat(lock)) == (409, "LOCK_OWNER_MISMATCH")


def test_release_is_idempotent_and_the_fence_grows(admin: Client, make_user: MakeUser, copy_id: str) -> None:
    path = f"/api/copies/{copy_id}/lock"
    first = admin.lock(copy_id)
    assert refusal(lambda: admin.send("DELETE", path, headers={"X-Lock-Token": uuid7()})) == (
        403,
        "INVALID_LOCK_TOKEN",
    )
    other = make_user("lead_marker")
    assert refusal(lambda: other.unlock(first)) == (409, "LOCK_OWNER_MISMATCH")
    assert [admin.send("DELETE", path, headers=first.headers).status_code for _ in range(2)] == [204, 204]
    assert admin.copy(copy_id)["status"] == "READY"
    assert admin.json("GET", path)["status"] == "UNLOCKED"
    assert refusal(lambda: admin.annotate(first, content="late")) == (409, "LOCK_MISSING")
    second = other.lock(copy_id)
    assert second.fence > first.fence
    actions = [(e["action"], e["metadata"].get("reason")) for e in admin.wait_audit(copy_id, "UNLOCK")]
    assert ("UNLOCK", "released") in actions


def test_an_expired_lease_refuses_writes_and_is_cleaned_up(admin: Client, copy_id: str) -> None:
    lock = admin.lock(copy_id, ttl_seconds=1)
    seen: list[tuple[int, str]] = []

    def expired() -> bool | None:
        try:
            admin.annotate(lock, content="late", id=uuid7())
        except Refused as refused:
            seen.append((refused.status, refused.reason))
            return True
        return None

    wait_for("the lease to end", expired, seconds=5)
    assert seen[0] in {(409, "LOCK_EXPIRED"), (409, "LOCK_MISSING")}
    kept = len(admin.annotations(copy_id))
    assert refusal(lambda: admin.heartbeat(lock))[0] == 404
    assert refusal(lambda: admin.annotate(lock, content="late"))[0] == 409
    assert len(admin.annotations(copy_id)) == kept
    admin.wait_copy(copy_id, ["READY"], seconds=25)
    unlocked = [e for e in admin.wait_audit(copy_id, "UNLOCK") if e["action"] == "UNLOCK"]
    assert [event["metadata"]["reason"] for event in unlocked] == ["expired"]
    again = admin.lock(copy_id)
    assert again.fence > lock.fence


def test_an_expired_lease_may_be_taken_by_another_at_once(admin: Client, make_user: MakeUser, copy_id: str) -> None:
    lock = admin.lock(copy_id, ttl_seconds=1)
    other = make_user("lead_marker")
    seen: set[str] = set()

    def taken() -> Lock | None:
        try:
            return other.lock(copy_id)
        except Refused as refused:
            seen.add(refused.reason)
            return None

    second = wait_for("the lease to end", taken, seconds=5)
    assert seen <= {"LOCK_HELD"}
    assert second.fence > lock.fence
    assert refusal(lambda: admin.annotate(lock, content="late"))[1] in {
        "INVALID_LOCK_TOKEN",
        "LOCK_OWNER_MISMATCH",
    }


@pytest.mark.parametrize("ttl", [0, -1, 3601, "soon", 1.5, None, True])
def test_a_bad_lease_length_is_refused(admin: Client, copy_id: str, ttl: object) -> None:
    body: Json = {"ttl_seconds": ttl}
    if ttl is None:  # null is the same as left out
        assert admin.send("POST", f"/api/copies/{copy_id}/lock", json=body).status_code in (201, 422)
        return
    assert refusal(lambda: admin.send("POST", f"/api/copies/{copy_id}/lock", json=body))[0] == 422


def test_writes_need_a_token_and_its_owner(admin: Client, make_user: MakeUser, copy_id: str) -> None:
    path = f"/api/copies/{copy_id}/annotations"
    body = {"page_index": 0, "x": 0.1, "y": 0.4, "w": 0.2, "h": 0.1, "type": "COMMENT", "content": "x"}
    assert refusal(lambda: admin.send("POST", path, json=body)) in {
        (403, "INVALID_LOCK_TOKEN"),
        (409, "LOCK_MISSING"),
    }
    lock = admin.lock(copy_id)
    assert refusal(lambda: admin.send("POST", path, json=body)) == (403, "INVALID_LOCK_TOKEN")
    other = make_user("lead_marker")
    assert refusal(lambda: other.annotate(lock, content="x")) == (409, "LOCK_OWNER_MISMATCH")
    assert refusal(lambda: other.finalize(lock)) == (409, "LOCK_OWNER_MISMATCH")
    assert admin.annotations(copy_id) == []


def test_who_may_lock(admin: Client, make_user: MakeUser, tmp_path: Path) -> None:
    first, second, stranger = make_user("marker"), make_user("marker"), make_user("marker")
    copy = ready_copy(admin, tmp_path, corrector_ids=[first.user["id"], second.user["id"]])
    assert refusal(lambda: stranger.lock(copy["id"]))[0] in (403, 404)
    lock = first.lock(copy["id"])
    assert admin.copy(copy["id"])["assigned_corrector_id"] == first.user["id"]
    first.unlock(lock)
    assert refusal(lambda: second.lock(copy["id"])) == (403, "NOT_ASSIGNED")
    assert make_user("lead_marker").lock(copy["id"]).fence > lock.fence
    for role in ("student", "auditor", "scan_operator"):
        assert refusal(lambda role=role: make_user(role).lock(copy["id"]))[0] in (403, 404)  # type: ignore[misc]


def test_of_many_at_once_one_gets_the_lock(admin: Client, make_user: MakeUser, copy_id: str) -> None:
    users = [make_user("lead_marker") for _ in range(6)]

    def try_lock(user: Client) -> str:
        try:
            user.lock(copy_id)
        except Refused as refused:
            return refused.reason
        return "granted"

    with ThreadPoolExecutor(len(users)) as pool:
        codes = sorted(pool.map(try_lock, users))
    assert codes == [*["LOCK_HELD"] * 5, "granted"]


def test_many_finalise_at_once_and_one_wins(admin: Client, copy_id: str) -> None:
    lock = admin.lock(copy_id)
    admin.put_scores(lock, {"q1": 3, "q2": 4}, "")

    def try_finalize(_: int) -> tuple[int, str]:
        try:
            answer = admin.send("POST", f"/api/copies/{copy_id}/finalize", json={}, headers=lock.headers)
            return answer.status_code, ""
        except Refused as refused:
            return refused.status, refused.reason

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(try_finalize, range(5)))
    assert [status for status, _ in answers].count(202) == 1
    assert {reason for status, reason in answers if status != 202} <= {
        "FINALIZE_IN_PROGRESS",
        "COPY_ALREADY_GRADED",
    }
    admin.wait_graded(copy_id)
    finals = [e for e in admin.wait_audit(copy_id, "FINALIZE") if e["action"] == "FINALIZE"]
    assert [event["metadata"]["success"] for event in finals] == [True]
    assert not [e for e in admin.audit(copy_id) if e["action"] == "UNLOCK"], "finalise ends the lock without UNLOCK"
    assert refusal(lambda: admin.annotate(lock, content="late"))[0] == 409
