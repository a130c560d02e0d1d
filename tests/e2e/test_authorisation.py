"""Every operation of the OpenAPI document before every kind of principal: who may, and who is refused.

The table names for each operation who may call it and how the state answers him; all others get 401 (nobody is
known) or 403/404 (somebody is). An operation without a row fails, so that none is published without a thought.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from harness.cast import PRINCIPALS, Cast, Person, Things, prepare, unsigned_token
from harness.client import Client, uuid7
from harness.instance import Instance
from harness.processes import wait_for

ADMIN = ("admin",)
KNOWN = ("marker", "colleague", "stranger", "student", "lead_marker", "scan_operator", "auditor", "admin")
SEE_ALL = ("lead_marker", "scan_operator", "auditor", "admin")
# of a copy that is assigned to the marker; of an exam that he and his colleague correct
READ_COPY = ("marker", *SEE_ALL)
READ_EXAM = ("marker", "colleague", *SEE_ALL)
READ_EXAMS = ("marker", "colleague", "stranger", *SEE_ALL)
# Who marks copies of the exam is told by 409 that the lock is another's.
MARK = ("marker", "colleague", "lead_marker", "admin")
LOCK = ("marker", "lead_marker", "admin")
STALE = {"If-Match": '"999999"'}
ANY = {"If-Match": "*"}
REASON = {"reason": "because"}
EXAM = {
    "name": "Never made", "date": "2026-01-12", "max_score": 3,
    "grading_structure": [{"id": "q1", "label": "Q1", "points": 2}],
}  # fmt: skip
ANNOTATION = {"page_index": 0, "x": 0.1, "y": 0.4, "w": 0.2, "h": 0.1, "type": "COMMENT", "content": "never"}
# Heard and not kept, so that the table changes nothing.
WATCHDOG = {
    "version": "4", "groupKey": "{}:{}", "status": "firing",
    "alerts": [
        {"status": "firing", "labels": {"severity": "none"}, "startsAt": "2026-01-12T00:00:00Z", "fingerprint": "w"}
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Who may call an operation, what is sent, and how the state answers those who may."""

    who: tuple[str, ...]
    status: int = 200
    copy: str = "locked"
    send: Mapping[str, Any] = field(default_factory=dict)
    is_public: bool = False
    has_own_session: bool = False


def body(status: int, who: tuple[str, ...], document: object = None, *, copy: str = "locked", **headers: str) -> Row:
    """Make the row of an operation that changes something and is refused by the state."""
    return Row(who, status, copy, {"json": {} if document is None else document, "headers": headers})


PUBLIC = Row(PRINCIPALS, is_public=True)
TABLE: dict[str, Row] = {
    "GET /api/health": PUBLIC,
    "GET /api/health/live": PUBLIC,
    "GET /api/health/ready": PUBLIC,
    "POST /api/login": Row(PRINCIPALS, is_public=True, send={"json": "login"}),
    "POST /api/logout": Row((*KNOWN, "unready"), 204, has_own_session=True),
    "GET /api/me": Row((*KNOWN, "unready")),
    "GET /api/csrf": Row((*KNOWN, "unready")),
    "POST /api/me/password": body(
        422, (*KNOWN, "unready"), {"current_password": "not-his-password", "new_password": "another-long-one"}
    ),
    "GET /api/users": Row(ADMIN),
    "POST /api/users": body(409, ADMIN, {"username": "admin", "password": "long-enough-1", "roles": ["admin"]}),
    "GET /api/users/{user_id}": Row(ADMIN),
    "PATCH /api/users/{user_id}": body(412, ADMIN, {"roles": ["admin"]}, **STALE),
    "GET /api/exams": Row(READ_EXAMS),
    "POST /api/exams": body(422, ADMIN, EXAM),
    "GET /api/exams/{exam_id}": Row(READ_EXAM),
    "PATCH /api/exams/{exam_id}": body(412, ADMIN, {"name": "Never"}, **STALE),
    "GET /api/exams/{exam_id}/copies": Row(READ_EXAM),
    "POST /api/exams/{exam_id}/validate-all": body(200, ("lead_marker", "scan_operator", "admin")),
    "POST /api/scans": Row(
        ("scan_operator", "admin"),
        422,
        send={"params": "exam", "files": {"file": ("DUPONT_Jean.pdf", b"", "application/pdf")}},
    ),
    "GET /api/scans/{scan_id}": Row(SEE_ALL),
    "GET /api/scans/{scan_id}/events": Row(SEE_ALL),
    "GET /api/pages/{page_id}/image": Row(READ_COPY),
    "GET /api/copies/{copy_id}": Row(READ_COPY),
    "POST /api/copies/{copy_id}/validate": body(409, ("lead_marker", "scan_operator", "admin")),
    "GET /api/locks": Row(("lead_marker", "auditor", "admin")),
    "DELETE /api/locks/{copy_id}": body(422, ADMIN, {"reason": " "}),
    "GET /api/copies/{copy_id}/lock": Row(READ_COPY),
    "POST /api/copies/{copy_id}/lock": body(409, LOCK),
    "DELETE /api/copies/{copy_id}/lock": body(409, MARK),
    "POST /api/copies/{copy_id}/lock/heartbeat": body(409, MARK),
    "POST /api/copies/{copy_id}/lock/takeover": body(409, LOCK, copy="graded"),
    "GET /api/copies/{copy_id}/annotations": Row(READ_COPY),
    "POST /api/copies/{copy_id}/annotations": body(409, MARK, ANNOTATION),
    "PATCH /api/copies/{copy_id}/annotations/{annotation_id}": body(409, MARK, {"content": "never"}, **ANY),
    "DELETE /api/copies/{copy_id}/annotations/{annotation_id}": body(409, MARK, **ANY),
    "GET /api/copies/{copy_id}/scores": Row(READ_COPY),
    "PUT /api/copies/{copy_id}/scores": body(409, MARK, {"scores": {"q1": 1}}, **ANY),
    "POST /api/copies/{copy_id}/finalize": body(409, MARK),
    "POST /api/copies/{copy_id}/retry-finalize": body(409, ADMIN, copy="graded"),
    "POST /api/copies/{copy_id}/reopen": body(409, ADMIN, REASON),
    "GET /api/copies/{copy_id}/final-pdf": Row(ADMIN, copy="graded"),
    "GET /api/audit/copies/{copy_id}": Row(("lead_marker", "auditor", "admin")),
    "GET /api/audit/events": Row(("auditor", "admin")),
    "GET /api/ops/summary": Row(("auditor", "admin")),
    "GET /api/ops/alerts": Row(("auditor", "admin")),
    "POST /api/ops/alerts": body(200, ("auditor", "admin"), WATCHDOG),
}


@dataclass(frozen=True)
class Stage:
    """The people and the things, once per instance."""

    admin: Client
    people: Mapping[str, Person]
    things: Things
    page_id: str

    def call(self, operation: str, row: Row, person: Person) -> httpx.Response:
        """Send one operation as one person; neither cookies nor sessions survive it."""
        method, path = operation.split(" ", 1)
        student = self.people["student"]
        ids = self.things.ids | {"page_id": self.page_id, "user_id": student.user_id}
        if row.copy == "graded":
            ids["copy_id"] = self.things.graded_id
        given = dict(row.send)
        if given.get("json") == "login":
            given["json"] = {"username": student.username, "password": student.password}
        if given.get("params") == "exam":
            given["params"] = {"exam_id": self.things.exam["id"]}
        if row.has_own_session and person.name in row.who:
            with Client(self.admin.url).login(person.username, person.password) as session:
                return session.http.request(method, path.format(**ids), **given)
        try:
            return person.http.request(method, path.format(**ids), **given)
        finally:
            person.http.cookies.clear()

    def snapshot(self) -> str:
        """Return all that no call of the table may change."""
        exams = [self.things.exam["id"], self.things.other_exam["id"]]
        copies = [self.things.graded_id, self.things.locked_id, self.things.other_copy_id]
        users = [p.user_id for p in self.people.values() if p.user_id]
        accounts = [self.admin.json("GET", f"/api/users/{user_id}") for user_id in users]
        state = [
            [self.admin.json("GET", f"/api/exams/{exam_id}") for exam_id in exams],
            [self.admin.copies(exam_id) for exam_id in exams],
            [self.admin.annotations(copy_id) for copy_id in copies],
            [self.admin.json("GET", f"/api/copies/{copy_id}/scores") for copy_id in copies],
            [self.admin.audit(copy_id) for copy_id in copies],
            [{key: user[key] for key in ("roles", "active", "email", "version")} for user in accounts],
        ]
        return json.dumps(state, sort_keys=True)


@pytest.fixture(scope="module")
def stage(instance: Instance, admin: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Everybody, and everything they ask for."""
    with Cast(admin, secrets.token_hex(3)) as people:
        things = prepare(admin, people, tmp_path_factory.mktemp("whose"))
        yield Stage(admin, people, things, admin.copy(things.locked_id)["pages"][0]["page_id"])


def verdict(row: Row, name: str, response: httpx.Response) -> bool:
    """Tell whether an answer is what the table says for this principal."""
    if row.is_public:
        return response.status_code == 200
    if name in row.who:
        return response.status_code == row.status
    if name in ("anonymous", "forged", "revoked"):
        return response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer"
    return response.status_code in (403, 404)


def test_every_operation_before_everybody(stage: Stage) -> None:
    document = stage.admin.json("GET", "/api/openapi.json")
    published = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert published == set(TABLE), "each operation needs a row here, and each row an operation"
    before = stage.snapshot()
    wrong, calls = [], 0
    for operation, row in TABLE.items():
        for name in PRINCIPALS:
            response = stage.call(operation, row, stage.people[name])
            calls += 1
            if not verdict(row, name, response):
                wrong.append(f"{operation} as {name}: {response.status_code} {response.text[:160]}")
    assert wrong == []
    assert calls == len(published) * len(PRINCIPALS)
    assert stage.snapshot() == before


def test_the_table_can_be_wrong(stage: Stage) -> None:
    """Each kind of mistake in the product or in the table is seen as one."""
    row = TABLE["GET /api/audit/events"]
    allowed = stage.call("GET /api/audit/events", row, stage.people["auditor"])
    refused = stage.call("GET /api/audit/events", row, stage.people["student"])
    unknown = stage.call("GET /api/audit/events", row, stage.people["anonymous"])
    assert verdict(row, "auditor", allowed) and verdict(row, "student", refused)
    assert not verdict(row, "student", allowed), "an unexpected 2xx"
    assert not verdict(row, "auditor", refused), "a right that is missing"
    assert not verdict(row, "anonymous", refused) and not verdict(row, "student", unknown)


def test_tokens_that_nobody_signed(stage: Stage) -> None:
    student = stage.people["student"]
    header, claims, signature = student.http.headers["Authorization"].split()[1].split(".")
    nobody = stage.people["anonymous"].http
    for token in (
        unsigned_token(), unsigned_token().rstrip("."), f"{header}.{claims}.", f"{header}.{claims}.{signature[::-1]}",
        "x", ".", "..", "a.b.c", f"{header}.{claims}.{signature}.{signature}",
    ):  # fmt: skip
        for path in ("/api/me", f"/api/scans/{stage.things.scan_id}", "/api/audit/events"):
            answer = nobody.get(path, headers={"Authorization": f"Bearer {token}"})
            assert (answer.status_code, answer.json()["status"]) == (401, 401), token
    assert student.http.get("/api/me").status_code == 200


def test_lists_hold_only_what_one_may_see(stage: Stage) -> None:
    things, people = stage.things, stage.people

    def seen(name: str, path: str) -> set[str]:
        found = people[name].http.get(path, params={"limit": 500}).json()["items"]
        return {item["id"] for item in found}

    exam_id, other_id = things.exam["id"], things.other_exam["id"]
    assert seen("marker", "/api/exams") == seen("colleague", "/api/exams") == {exam_id}
    assert seen("stranger", "/api/exams") == {other_id}
    assert seen("lead_marker", "/api/exams") >= {exam_id, other_id}
    assert seen("marker", f"/api/exams/{exam_id}/copies") == {things.graded_id, things.locked_id}
    assert seen("colleague", f"/api/exams/{exam_id}/copies") == set()


def test_an_object_is_not_reached_through_another(stage: Stage) -> None:
    """One's own copy, lock or page opens nothing of anybody else's."""
    things, people = stage.things, stage.people
    stranger = people["stranger"].http
    lock = stranger.post(f"/api/copies/{things.other_copy_id}/lock", json={}).json()
    token = {"X-Lock-Token": lock["token"]}
    before = stage.admin.annotations(things.locked_id)
    foreign, own = things.annotation["id"], f"/api/copies/{things.other_copy_id}"
    for method, path, given in (
        ("PATCH", f"{own}/annotations/{foreign}", {"json": {"content": "mine"}, "headers": token | ANY}),
        ("DELETE", f"{own}/annotations/{foreign}", {"headers": token | ANY}),
        ("POST", f"/api/copies/{things.locked_id}/annotations", {"json": ANNOTATION, "headers": token}),
        ("PUT", f"/api/copies/{things.locked_id}/scores", {"json": {"scores": {}}, "headers": token | ANY}),
        ("POST", f"/api/copies/{things.locked_id}/lock/heartbeat", {"headers": token}),
        ("POST", f"/api/copies/{things.locked_id}/finalize", {"headers": token}),
        ("GET", f"/api/pages/{stage.page_id}/image", {}),
    ):
        assert stranger.request(method, path, **given).status_code == 404, path  # type: ignore[arg-type]
    # a page of another copy cannot be written on, and an id that exists elsewhere is no way to it
    wish = ANNOTATION | {"page_index": None, "page_id": stage.page_id}
    refused = stranger.post(f"{own}/annotations", json=wish, headers=token)
    assert refused.status_code == 422, refused.text
    made = stranger.post(f"{own}/annotations", json=ANNOTATION | {"id": foreign, "content": "own"}, headers=token)
    assert made.status_code in (201, 409)
    assert stage.admin.annotations(things.locked_id) == before
    # somebody else's token is of no use to those who mark the same exam
    stolen = {"X-Lock-Token": things.lock.token}
    for name in ("marker", "colleague", "lead_marker", "admin"):
        answer = people[name].http.post(
            f"/api/copies/{things.locked_id}/annotations", json=ANNOTATION | {"id": uuid7()}, headers=stolen
        )
        assert (answer.status_code, answer.json()["reason"]) == (409, "LOCK_OWNER_MISMATCH"), name
    assert stranger.delete(f"{own}/lock", headers=token).status_code == 204


def test_an_idempotency_key_is_its_callers_own(stage: Stage) -> None:
    key = {"Idempotency-Key": uuid7()}
    made = stage.admin.json("POST", "/api/exams", json=EXAM | {"max_score": 2, "name": "Key"}, headers=key)
    again = stage.admin.json("POST", "/api/exams", json=EXAM | {"max_score": 2, "name": "Key"}, headers=key)
    assert again["id"] == made["id"]
    for name in ("marker", "auditor"):
        answer = stage.people[name].http.post("/api/exams", json=EXAM | {"max_score": 2, "name": "Key"}, headers=key)
        assert answer.status_code == 403 and made["id"] not in answer.text


def test_who_is_no_corrector_any_more_writes_nothing(stage: Stage) -> None:
    """A lock does not outlive the right to mark the exam."""
    admin, http = stage.admin, stage.people["stranger"].http
    copy_id, exam = stage.things.other_copy_id, stage.things.other_exam
    path = f"/api/copies/{copy_id}"
    token = {"X-Lock-Token": http.post(f"{path}/lock", json={}).json()["token"]}
    made = http.post(f"{path}/annotations", json=ANNOTATION, headers=token).json()["id"]
    before = admin.annotations(copy_id)
    admin.json("PATCH", f"/api/exams/{exam['id']}", json={"corrector_ids": []})
    try:
        answers = {
            "create": http.post(f"{path}/annotations", json=ANNOTATION, headers=token),
            "change": http.patch(f"{path}/annotations/{made}", json={"content": "x"}, headers=token | ANY),
            "delete": http.delete(f"{path}/annotations/{made}", headers=token | ANY),
            "heartbeat": http.post(f"{path}/lock/heartbeat", headers=token),
            "relock": http.post(f"{path}/lock", json={}, headers=token),
            "scores": http.put(f"{path}/scores", json={"scores": {"q1": 1}}, headers=token | ANY),
            "finalize": http.post(f"{path}/finalize", headers=token),
            "read": http.get(path),
        }
        assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 404)
        assert admin.annotations(copy_id) == before
        image = f"/api/pages/{stage.things.other_page_id}/image"
        wait_for("the page closed", lambda: http.get(image).status_code == 404, seconds=2)
    finally:
        admin.json("PATCH", f"/api/exams/{exam['id']}", json={"corrector_ids": exam["corrector_ids"]})
        admin.send("DELETE", f"/api/locks/{copy_id}", json=REASON)


def test_the_doors_that_need_no_key_tell_nothing(stage: Stage) -> None:
    """What anybody may read holds no name, id or number of this school."""
    things = stage.things
    secret: list[str] = [things.exam["id"], things.graded_id, things.scan_id, "Whose", "DUPONT", "marker-"]
    secret += [p.user_id for p in stage.people.values() if p.user_id]
    for path in ("/", "/api/docs", "/api/openapi.json", "/metrics", "/api/health", "/api/health/live"):
        answer = stage.people["anonymous"].http.get(path)
        assert answer.status_code == 200
        assert [word for word in secret if word in answer.text] == [], path
