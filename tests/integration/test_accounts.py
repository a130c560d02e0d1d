"""Logins and accounts over real HTTP on a real PostgreSQL: sessions, limits, roles, the last admin."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from harness.grading_room import ADMIN_PASSWORD, GradingRoom
from harness.processes import wait_for
from harness.servers import Postgres
from korrigo_grading.flows import accounts, sessions
from korrigo_kit.errors import NotFound
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_protos.grading.v1 import events_pb2

SECURE = {"KORRIGO_HTTP__PUBLIC_URL": "https://korrigo.example.org", "KORRIGO_LOGIN__ADDRESS_FAILURES": "8"}


@pytest.fixture(scope="module")
def room(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradingRoom]:
    """The room with its default settings."""
    room = GradingRoom(postgres_server, tmp_path_factory.mktemp("accounts"))
    yield room
    room.close()


@pytest.fixture
def fresh(postgres_server: Postgres, tmp_path: Path) -> Iterator[GradingRoom]:
    """A room of one's own, where failed logins of other tests do not count; public under https."""
    room = GradingRoom(postgres_server, tmp_path, SECURE)
    yield room
    room.close()


def refused(response: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    assert (response.status_code, response.json().get("reason")) == (status, reason), response.text
    assert response.headers["Content-Type"].startswith("application/problem+json")
    found: dict[str, Any] = response.json()
    return found


def try_login(client: httpx.Client, username: str, password: str) -> httpx.Response:
    return client.post("/api/login", json={"username": username, "password": password})


# ------------------------------------------------------------------------------------------------------- sessions
def test_a_login_gives_a_token_and_a_cookie(room: GradingRoom) -> None:
    client = room.anonymous()
    answer = try_login(client, "ADMIN", ADMIN_PASSWORD)
    assert answer.status_code == 200 and answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 14400)
    assert body["user"] == {"id": body["user"]["id"], "username": "admin", "roles": ["admin"]}
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("korrigo_session=") and "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert "Secure" not in cookie
    me = room.anonymous().get("/api/me", headers={"Authorization": f"Bearer {body['access_token']}"})
    assert me.json()["username"] == "admin" and me.json()["last_login"] is not None
    assert "password" not in me.text.replace("must_change_password", "")


def test_a_cookie_changes_nothing_without_the_csrf_token(fresh: GradingRoom) -> None:
    browser = fresh.anonymous()
    set_cookie = try_login(browser, "admin", ADMIN_PASSWORD).headers["Set-Cookie"]
    assert "Secure" in set_cookie
    # httpx keeps a Secure cookie from plain http, as a browser would: hand it over by hand
    cookie = {"Cookie": set_cookie.split(";")[0]}
    browser.cookies.clear()
    user = {"username": "cookie.monster", "password": "long-enough-1", "roles": ["marker"]}
    refused(browser.post("/api/users", json=user, headers=cookie), 403, "CSRF_TOKEN_INVALID")
    token = browser.get("/api/csrf", headers=cookie).json()["csrf_token"]
    made = browser.post("/api/users", json=user, headers={**cookie, "X-CSRF-Token": token})
    assert made.status_code == 201
    out = browser.post("/api/logout", headers={**cookie, "X-CSRF-Token": token})
    assert out.status_code == 204 and "korrigo_session=" in out.headers["Set-Cookie"]
    wait_for("refusal", lambda: browser.get("/api/me", headers=cookie).status_code == 401, seconds=1.5)


def test_logging_out_ends_one_session_and_tells_it(room: GradingRoom) -> None:
    first, user_id = room.user("logger.out", "marker")
    second = room.log_in("logger.out", "password of logger.out")
    assert first.post("/api/logout").status_code == 204
    wait_for("refusal", lambda: first.get("/api/me").status_code == 401, seconds=1.5)
    refused(first.get("/api/me"), 401, "SESSION_REVOKED")
    assert second.get("/api/me").status_code == 200
    second.post("/api/logout")
    told = [event for event in room.events("user", user_id) if event["type"] == "sessions_revoked"]
    sizes = [len(events_pb2.SessionsRevoked.FromString(event["payload"]).sessions) for event in told]
    assert sizes == [1, 2], "the last event of an account says everything"
    ends = events_pb2.SessionsRevoked.FromString(told[-1]["payload"]).sessions[0].expires_at
    assert 14400 < ends - time.time() < 14500, "longer than the token lives, so that it is never accepted again"


def test_wrong_and_unknown_are_told_alike_and_take_alike(fresh: GradingRoom) -> None:
    fresh.user("known", "marker")
    client = fresh.anonymous()
    answers, seconds = [], []
    for name in ("known", "unknown", "system"):
        began = time.perf_counter()
        answers.append(refused(try_login(client, name, "wrong-password"), 401, "INVALID_CREDENTIALS"))
        seconds.append(time.perf_counter() - began)
    assert len({json.dumps({**answer, "request_id": ""}) for answer in answers}) == 1
    assert min(seconds) > 0.01, "every refusal has computed a hash"


# --------------------------------------------------------------------------------------------------------- limits
def test_five_failures_and_the_account_waits(fresh: GradingRoom) -> None:
    fresh.user("victim", "marker")
    fresh.rt.db.close()
    with fresh.rt.db.transaction() as tx:
        tx.run("UPDATE sessions SET address = '192.0.2.1'")
    client = fresh.anonymous()
    for _ in range(5):
        refused(try_login(client, "victim", "wrong-password"), 401, "INVALID_CREDENTIALS")
    answer = try_login(client, "Victim", "password of victim")
    refused(answer, 429, "TOO_MANY_ATTEMPTS")
    assert 890 <= int(answer.headers["Retry-After"]) <= 900
    assert try_login(client, "admin", ADMIN_PASSWORD).status_code == 200, "nobody else waits"
    with fresh.rt.db.transaction() as tx:
        tx.run("UPDATE login_attempts SET at = at - interval '15 minutes'")
    assert try_login(client, "victim", "password of victim").status_code == 200


def test_a_hundred_guesses_at_once_count_as_a_hundred(fresh: GradingRoom) -> None:
    fresh.user("raced", "marker")
    barrier = threading.Barrier(16)

    def guess(_: int) -> int:
        with httpx.Client(base_url=fresh.url, timeout=60, trust_env=False) as client:
            barrier.wait(20)
            return try_login(client, "raced", "wrong-password").status_code

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(guess, range(16)))
    assert sorted(codes) == [401] * 5 + [429] * 11


def test_an_address_that_tries_many_names_waits_but_not_those_who_came_from_it(fresh: GradingRoom) -> None:
    fresh.user("colleague", "marker")
    client = fresh.anonymous()
    for number in range(8):
        refused(try_login(client, f"guess{number}", "wrong-password"), 401, "INVALID_CREDENTIALS")
    refused(try_login(client, "guess9", "wrong-password"), 429, "TOO_MANY_ATTEMPTS")
    assert try_login(client, "colleague", "password of colleague").status_code == 200
    exposed = client.get("/metrics").text
    failures = next(line for line in exposed.splitlines() if line.startswith("grading_login_failures_total "))
    assert float(failures.split()[1]) >= 9


def test_somebody_is_not_locked_out_by_a_stranger(fresh: GradingRoom) -> None:
    fresh.user("famous", "marker")
    with fresh.rt.db.transaction() as tx:
        tx.run(
            "INSERT INTO login_attempts (kind, account_sha, address)"
            " SELECT 'login', encode(sha256('famous'), 'hex'), '203.0.113.9' FROM generate_series(1, 5)"
        )
    client = fresh.anonymous()
    assert try_login(client, "famous", "password of famous").status_code == 200
    with fresh.rt.db.transaction() as tx:
        tx.run("DELETE FROM sessions")
    refused(try_login(client, "famous", "password of famous"), 429, "TOO_MANY_ATTEMPTS")


def test_what_was_typed_as_a_name_is_not_kept(fresh: GradingRoom) -> None:
    try_login(fresh.anonymous(), "my-secret-password", "oops-wrong-field")
    with psycopg.connect(fresh.database_url) as connection:
        rows = connection.execute("SELECT * FROM grading.login_attempts").fetchall()
    assert len(rows) == 1 and "secret" not in str(rows)


# ------------------------------------------------------------------------------------------------------- password
def test_changing_ones_password_ends_the_old_sessions(room: GradingRoom) -> None:
    client, user_id = room.user("changer", "marker")
    other = room.log_in("changer", "password of changer")

    def change(current: str, new: str) -> httpx.Response:
        return client.post("/api/me/password", json={"current_password": current, "new_password": new})

    refused(change("password of changer", "short"), 422, "PASSWORD_TOO_SHORT")
    refused(change("not my password", "another-password-1"), 422, "WRONG_PASSWORD")
    refused(change("password of changer", "password of changer"), 422, "PASSWORD_UNCHANGED")
    answer = change("password of changer", "another-password-1")
    assert answer.status_code == 200, answer.text
    wait_for("refusal", lambda: other.get("/api/me").status_code == 401, seconds=1.5)
    assert client.get("/api/me").status_code == 401
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    assert client.get("/api/me").status_code == 200
    refused(try_login(room.anonymous(), "changer", "password of changer"), 401, "INVALID_CREDENTIALS")
    told = [event["leaf"]["metadata"] for event in room.events("user", user_id) if event["action"] == "USER_UPDATED"]
    assert told == [{"changed": ["password"], "sessions_ended": 2, "version": 2}]


def test_five_attempts_an_hour_to_change_a_password(room: GradingRoom) -> None:
    client, _ = room.user("fumbler", "marker")
    body = {"current_password": "not my password", "new_password": "another-password-1"}
    for _ in range(5):
        refused(client.post("/api/me/password", json=body), 422, "WRONG_PASSWORD")
    body["current_password"] = "password of fumbler"
    refused(client.post("/api/me/password", json=body), 429, "TOO_MANY_ATTEMPTS")


def test_who_must_change_his_password_can_do_nothing_else(room: GradingRoom) -> None:
    body = {"username": "new.hire", "password": "first-password", "roles": ["marker"], "must_change_password": True}
    assert room.log_in().post("/api/users", json=body).json()["must_change_password"] is True
    client = room.log_in("new.hire", "first-password")
    refused(client.get("/api/exams"), 403, "PASSWORD_CHANGE_REQUIRED")
    assert client.get("/api/me").status_code == 200
    answer = client.post(
        "/api/me/password", json={"current_password": "first-password", "new_password": "second-password"}
    )
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    assert client.get("/api/exams").status_code == 200


# ------------------------------------------------------------------------------------------------------- accounts
def test_accounts_are_made_listed_and_changed(room: GradingRoom) -> None:
    admin = room.log_in()
    body = {
        "username": "Ada",
        "password": "long-enough-1",
        "roles": ["marker", "scan_operator"],
        "email": "a@b.example",
    }
    made = admin.post("/api/users", json=body)
    assert made.status_code == 201 and made.headers["ETag"] == '"1"'
    user = made.json()
    assert made.headers["Location"] == f"/api/users/{user['id']}"
    assert (user["username"], user["roles"], user["active"]) == ("Ada", ["marker", "scan_operator"], True)
    refused(admin.post("/api/users", json={**body, "username": "aDA"}), 409, "USERNAME_TAKEN")
    refused(admin.post("/api/users", json={**body, "username": "system"}), 409, "USERNAME_TAKEN")
    path = f"/api/users/{user['id']}"
    stale = admin.patch(path, json={"email": None}, headers={"If-Match": '"7"'})
    assert refused(stale, 412, "VERSION_MISMATCH")["current"]["email"] == "a@b.example"
    changed = admin.patch(path, json={"email": None}, headers={"If-Match": '"1"'})
    assert (changed.json()["email"], changed.headers["ETag"]) == (None, '"2"')
    assert admin.patch(path, json={"email": None}).headers["ETag"] == '"2"', "nothing changed, nothing counted"
    actions = [(event["action"], event["leaf"]["metadata"]) for event in room.events("user", user["id"])]
    assert actions == [
        ("USER_CREATED", {"roles": ["marker", "scan_operator"], "version": 1}),
        ("USER_UPDATED", {"changed": ["email"], "version": 2}),
    ]
    names, cursor = [], None
    while True:
        page = admin.get("/api/users", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        names += [item["username"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert names == sorted(names, key=str.casefold) and len(names) == len(set(names))
    assert {"Ada", "admin"} <= set(names) and "system" not in names


@pytest.mark.parametrize(
    "change", [{"roles": ["auditor"]}, {"active": False}, {"password": "a-new-password"}], ids=lambda c: next(iter(c))
)
def test_a_change_that_matters_ends_the_sessions(room: GradingRoom, change: dict[str, Any]) -> None:
    name = f"ended.by.{next(iter(change))}"
    client, user_id = room.user(name, "marker")
    assert client.get("/api/me").status_code == 200
    assert room.log_in().patch(f"/api/users/{user_id}", json=change).status_code == 200
    wait_for("refusal", lambda: client.get("/api/me").status_code == 401, seconds=1.5)
    assert [event["type"] for event in room.events("user", user_id)][-1] == "sessions_revoked"
    status = 200 if "roles" in change else 401
    assert try_login(room.anonymous(), name, f"password of {name}").status_code == status


def test_the_last_admin_stays(fresh: GradingRoom) -> None:
    admin = fresh.log_in()
    me = admin.get("/api/me").json()["id"]
    for change in ({"active": False}, {"roles": ["marker"]}):
        refused(admin.patch(f"/api/users/{me}", json=change), 409, "LAST_ADMIN")
    second, other = fresh.user("second", "admin")
    for change in ({"active": False}, {"roles": ["marker"]}):
        refused(admin.patch(f"/api/users/{me}", json=change), 409, "OWN_ACCOUNT")
    barrier = threading.Barrier(2)

    def close(client: httpx.Client, user_id: str) -> int:
        barrier.wait(20)
        return client.patch(f"/api/users/{user_id}", json={"active": False}).status_code

    with ThreadPoolExecutor(2) as pool:
        codes = [pool.submit(close, admin, other), pool.submit(close, second, me)]
        assert sorted(code.result() for code in codes) in ([200, 401], [200, 409])
    with fresh.rt.db.transaction() as tx:
        assert tx.row("SELECT count(*) AS n FROM users WHERE is_active AND 'admin' = ANY(roles)")["n"] == 1


def test_accounts_are_for_admins(room: GradingRoom) -> None:
    body = {"username": "sneaked", "password": "long-enough-1", "roles": ["admin"]}
    for role in ("scan_operator", "marker", "lead_marker", "student", "auditor"):
        client, user_id = room.user(f"only.{role}", role)
        refused(client.get("/api/users"), 403, "FORBIDDEN")
        refused(client.post("/api/users", json=body), 403, "FORBIDDEN")
        refused(client.get(f"/api/users/{user_id}"), 403, "FORBIDDEN")
        refused(client.patch(f"/api/users/{user_id}", json={"roles": ["admin"]}), 403, "FORBIDDEN")
        assert client.get("/api/me").json()["roles"] == [role]
    for method, path in (("GET", "/api/users"), ("POST", "/api/users"), ("GET", "/api/me"), ("POST", "/api/logout")):
        refused(room.anonymous().request(method, path, json=body), 401, "TOKEN_MISSING")
    admin = room.log_in()
    refused(admin.patch(f"/api/users/{SYSTEM_ACTOR}", json={"active": True}), 404, "USER_NOT_FOUND")


@pytest.mark.parametrize(
    "body",
    [
        {"username": "x"},
        {"username": "x", "password": "short", "roles": ["marker"]},
        {"username": "x", "password": "long-enough-1", "roles": ["king"]},
        {"username": "x", "password": "long-enough-1", "roles": []},
        {"username": "x y", "password": "long-enough-1", "roles": ["marker"]},
        {"username": "x\x00", "password": "long-enough-1", "roles": ["marker"]},
        {"username": "x", "password": "long-enough-1\x00", "roles": ["marker"]},
        {"username": "x", "password": "long-enough-1", "roles": ["marker"], "email": "nowhere"},
        {"username": "x", "password": "long-enough-1", "roles": ["marker"], "email": "a@b\x00"},
        {"username": "x", "password": "long-enough-1", "roles": ["marker"], "must_change_password": "yes"},
        {"username": "x", "password": "long-enough-1", "roles": ["marker"], "is_system": True},
    ],
    ids=lambda body: json.dumps(body)[:70],
)
def test_refused_accounts(room: GradingRoom, body: dict[str, Any]) -> None:
    admin = room.log_in()
    before = admin.get("/api/users", params={"limit": 500}).json()
    assert admin.post("/api/users", json=body).status_code == 422
    assert (
        admin.get("/api/users", params={"limit": 500}).json()["items"][0]["username"] == before["items"][0]["username"]
    )
    assert len(admin.get("/api/users", params={"limit": 500}).json()["items"]) == len(before["items"])


@pytest.mark.parametrize(
    "raw",
    [
        b'{"username": "\\ud800", "password": "x"}',
        b'{"username": "x", "password": "\\ud800"}',
        b'{"username": "x\\u0000", "password": "x"}',
        b'{"username": "x", "password": "x", "\\ud800": 1}',
        b"[" * 50_000,
        b"\xff",
        b"",
    ],
)
def test_logins_that_make_no_sense_are_refused_without_an_error_of_ours(room: GradingRoom, raw: bytes) -> None:
    answer = room.anonymous().post("/api/login", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 401, 422), answer.text


# ------------------------------------------------------------------------------------------------- the front door
def test_the_first_admin_and_the_words_of_the_cli(fresh: GradingRoom) -> None:
    assert not accounts.ensure_admin(fresh.rt, "another-password-1"), "there is one already"
    made = accounts.add_user(fresh.rt, "from.cli", "long-enough-1", ["marker"])
    client = fresh.log_in("from.cli", "long-enough-1")
    accounts.set_password(fresh.rt, "FROM.CLI", "another-password-1")
    wait_for("refusal", lambda: client.get("/api/me").status_code == 401, seconds=1.5)
    fresh.log_in("from.cli", "another-password-1")
    assert [account.username for account in accounts.list_users(fresh.rt)] == ["admin", "from.cli"]
    assert {event["leaf"]["actor_id"] for event in fresh.events("user", made.id)} == {SYSTEM_ACTOR}
    with pytest.raises(NotFound):
        accounts.set_password(fresh.rt, "nobody", "another-password-1")
    # a closed admin is opened again by whoever holds the machine
    with fresh.rt.db.transaction() as tx:
        tx.run("UPDATE users SET is_active = false WHERE username = 'admin'")
    assert accounts.ensure_admin(fresh.rt, "yet-another-password")
    fresh.log_in("admin", "yet-another-password")


def test_old_sessions_and_attempts_are_pruned(fresh: GradingRoom) -> None:
    fresh.log_in()
    try_login(fresh.anonymous(), "nobody", "wrong-password")
    sessions.prune(fresh.rt)
    with fresh.rt.db.transaction() as tx:
        counts = tx.row("SELECT (SELECT count(*) FROM sessions) AS s, (SELECT count(*) FROM login_attempts) AS a")
        assert (counts["s"], counts["a"]) == (1, 1)
        tx.run("UPDATE sessions SET expires_at = clock_timestamp() - interval '31 days'")
        tx.run("UPDATE login_attempts SET at = clock_timestamp() - interval '2 days'")
    sessions.prune(fresh.rt)
    with fresh.rt.db.transaction() as tx:
        counts = tx.row("SELECT (SELECT count(*) FROM sessions) AS s, (SELECT count(*) FROM login_attempts) AS a")
    assert (counts["s"], counts["a"]) == (0, 0)
