"""Exams over real HTTP and gRPC on a real PostgreSQL: exact schemes, who may see what, what copies forbid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_kit import context
from korrigo_kit.auth import Principal
from korrigo_kit.errors import Forbidden, NotFound
from korrigo_kit.ids import new_id
from korrigo_kit.rpc import Channels
from korrigo_protos.grading.v1 import events_pb2, grading_pb2, grading_pb2_grpc

Json = dict[str, Any]
EXAM: Json = {
    "name": "Mathématiques, épreuve blanche ≤ 2026",
    "date": "2026-05-20",
    "grading_structure": [
        {
            "id": "ex1",
            "label": "Exercice 1",
            "children": [
                {"id": "ex1.a", "label": "α → β", "points": 2.25},
                {"id": "ex1.b", "label": "√2", "points": 9.75},
            ],
        },
        {"id": "ex2", "label": "Exercice 2", "points": 8},
    ],
}


@pytest.fixture(scope="module")
def room(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradingRoom]:
    """The room, served."""
    room = GradingRoom(postgres_server, tmp_path_factory.mktemp("exams"))
    yield room
    room.close()


@pytest.fixture(scope="module")
def admin(room: GradingRoom) -> httpx.Client:
    """An admin's session."""
    return room.log_in()


@pytest.fixture(scope="module")
def markers(room: GradingRoom) -> dict[str, tuple[httpx.Client, str]]:
    """One user of every role, and a second marker."""
    names = ("scan_operator", "marker", "lead_marker", "student", "auditor")
    return {name: room.user(name, name) for name in names} | {"other": room.user("other", "marker")}


def create(client: httpx.Client, **changes: Any) -> Json:
    answer = client.post("/api/exams", json=EXAM | changes)
    assert answer.status_code == 201, answer.text
    exam: Json = answer.json()
    assert answer.headers["ETag"] == f'"{exam["version"]}"'
    assert answer.headers["Location"] == f"/api/exams/{exam['id']}"
    return exam


def refused(response: httpx.Response, status: int, reason: str) -> Json:
    assert (response.status_code, response.json().get("reason")) == (status, reason), response.text
    found: Json = response.json()
    return found


def add_copy(room: GradingRoom, exam_id: str, status: str) -> str:
    copy_id = new_id()
    with room.rt.db.transaction() as tx:
        tx.run(
            "INSERT INTO copies (id, exam_id, anonymous_id, status, assembly, created_by)"
            " VALUES (%(id)s, %(exam)s, %(code)s, %(status)s, 1, %(exam)s)",
            {"id": copy_id, "exam": exam_id, "status": status, "code": copy_id[-12:]},
        )
    return copy_id


def test_an_exam_with_the_defaults(room: GradingRoom, admin: httpx.Client) -> None:
    exam = create(admin)
    assert exam["split_config"] == {"mode": "A3_to_A4", "pages_per_booklet": 4, "split_horizontal": True}
    assert (exam["pages_per_booklet"], exam["max_score"], exam["auto_validate"], exam["corrector_ids"]) == (
        4, 20, False, [],
    )  # fmt: skip
    first = exam["grading_structure"][0]
    assert first["points"] == 12 and [child["points"] for child in first["children"]] == [2.25, 9.75]
    assert exam["grading_structure"][1] == {"id": "ex2", "label": "Exercice 2", "points": 8}
    read = admin.get(f"/api/exams/{exam['id']}")
    assert read.json() == exam and read.headers["ETag"] == '"1"'
    (event,) = room.events("exam", exam["id"])
    payload = events_pb2.ExamChanged.FromString(event["payload"])
    assert (payload.split_mode, payload.pages_per_booklet, payload.version) == ("A3_to_A4", 4, 1)
    assert (event["type"], event["action"]) == ("exam_changed", "EXAM_CREATED")
    assert event["leaf"]["metadata"] == {"scheme_version": 1, "split_mode": "A3_to_A4", "version": 1}
    assert event["leaf"]["actor_id"] == admin.get("/api/me").json()["id"]


def test_points_are_kept_exactly(room: GradingRoom, admin: httpx.Client) -> None:
    """A tenth and two tenths are three tenths, in the table too."""
    structure = [{"id": f"q{n}", "label": "x", "points": points} for n, points in enumerate((0.1, 0.2, 0.07))]
    exam = create(admin, grading_structure=structure, max_score=0.37)
    with room.rt.db.transaction() as tx:
        row = tx.row(
            "SELECT max_score::text AS max_score, jsonb_path_query_array(grading_structure, '$[*].points')::text AS p"
            " FROM exams WHERE id = %s",
            (exam["id"],),
        )
    assert row == {"max_score": "0.37", "p": "[0.1, 0.2, 0.07]"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "VALIDATION_ERROR"),
        ({"name": "   "}, "INVALID_TEXT"),
        ({"name": "two\nlines"}, "INVALID_TEXT"),
        ({"name": "a\x00b"}, "UNSUPPORTED_CHARACTER"),
        ({"name": "party \U0001f389"}, "UNSUPPORTED_CHARACTER"),
        ({"name": 7}, "VALIDATION_ERROR"),
        ({"date": "soon"}, "VALIDATION_ERROR"),
        ({"split_config": {"mode": "custom"}}, "SPLIT_MODE_NOT_AVAILABLE"),
        ({"split_config": {"mode": "A5"}}, "VALIDATION_ERROR"),
        ({"split_config": {"mode": "A4_single", "pages_per_booklet": -1}}, "VALIDATION_ERROR"),
        ({"split_config": {"mode": "A4_single", "pages_per_booklet": 1.5}}, "VALIDATION_ERROR"),
        ({"max_score": 19}, "INVALID_GRADING_STRUCTURE"),
        ({"max_score": "20"}, "VALIDATION_ERROR"),
        ({"max_score": 20.001}, "INVALID_POINTS"),
        ({"max_score": 1e308}, "VALIDATION_ERROR"),
        ({"grading_structure": []}, "VALIDATION_ERROR"),
        ({"grading_structure": [{"id": "q", "label": "漢字", "points": 20}]}, "UNSUPPORTED_CHARACTER"),
        ({"grading_structure": [{"id": "q", "label": "x", "points": True}]}, "VALIDATION_ERROR"),
        ({"grading_structure": [{"id": "q", "label": "x", "points": 20, "hint": 1}]}, "VALIDATION_ERROR"),
        ({"auto_validate": "yes"}, "VALIDATION_ERROR"),
        ({"corrector_ids": ["nobody"]}, "VALIDATION_ERROR"),
        ({"corrector_ids": ["0198c0de-0000-7000-8000-000000000000"]}, "UNKNOWN_CORRECTOR"),
        ({"colour": "red"}, "VALIDATION_ERROR"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_refused_exams(room: GradingRoom, admin: httpx.Client, changes: Json, reason: str) -> None:
    exam = create(admin)
    with room.rt.db.transaction() as tx:
        before = tx.row("SELECT count(*) AS n, max(version) AS v FROM exams")
    refused(admin.post("/api/exams", json=EXAM | changes), 422, reason)
    refused(admin.patch(f"/api/exams/{exam['id']}", json=changes), 422, reason)
    with room.rt.db.transaction() as tx:
        assert tx.row("SELECT count(*) AS n, max(version) AS v FROM exams") == before


def test_numbers_that_json_does_not_know(admin: httpx.Client) -> None:
    for word in ("NaN", "Infinity", "-Infinity"):
        body = json.dumps(EXAM | {"max_score": 20}).replace(": 20}", f": {word}}}")
        assert word in body
        answer = admin.post("/api/exams", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text


def test_correctors_are_people_who_mark(
    room: GradingRoom, admin: httpx.Client, markers: dict[str, tuple[httpx.Client, str]]
) -> None:
    ids = {name: user_id for name, (_, user_id) in markers.items()}
    for name in ("student", "auditor", "scan_operator"):
        told = refused(admin.post("/api/exams", json=EXAM | {"corrector_ids": [ids[name]]}), 422, "UNKNOWN_CORRECTOR")
        assert told["corrector_ids"] == [ids[name]]
    _, closed = room.user("closed", "marker")
    exam = create(admin, corrector_ids=[ids["marker"], ids["lead_marker"], closed, ids["marker"]])
    assert exam["corrector_ids"] == sorted({ids["marker"], ids["lead_marker"], closed})
    admin.patch(f"/api/users/{closed}", json={"active": False})
    refused(admin.post("/api/exams", json=EXAM | {"corrector_ids": [closed]}), 422, "UNKNOWN_CORRECTOR")
    # one who left does not keep the exam from being changed
    changed = admin.patch(f"/api/exams/{exam['id']}", json={"corrector_ids": [closed, ids["other"]]})
    assert changed.json()["corrector_ids"] == sorted([closed, ids["other"]])


def test_who_sees_and_changes_what(admin: httpx.Client, markers: dict[str, tuple[httpx.Client, str]]) -> None:
    mine = create(admin, corrector_ids=[markers["marker"][1]])
    foreign = create(admin, corrector_ids=[markers["other"][1]])
    for role, (client, _) in markers.items():
        refused(client.post("/api/exams", json=EXAM), 403, "FORBIDDEN")
        refused(client.patch(f"/api/exams/{mine['id']}", json={"name": "Mine"}), 403, "FORBIDDEN")
        if role == "student":
            refused(client.get("/api/exams"), 403, "FORBIDDEN")
            refused(client.get(f"/api/exams/{mine['id']}"), 403, "FORBIDDEN")
            continue
        seen = {exam["id"] for exam in client.get("/api/exams", params={"limit": 500}).json()["items"]}
        expected = {"marker": {mine["id"]}, "other": {foreign["id"]}}.get(role, {mine["id"], foreign["id"]})
        assert seen & {mine["id"], foreign["id"]} == expected
        for exam in (mine, foreign):
            answer = client.get(f"/api/exams/{exam['id']}")
            if exam["id"] in expected:
                assert answer.json() == exam
            else:
                refused(answer, 404, "EXAM_NOT_FOUND")
    refused(admin.get(f"/api/exams/{new_id()}"), 404, "EXAM_NOT_FOUND")
    refused(admin.patch(f"/api/exams/{new_id()}", json={"name": "x"}), 404, "EXAM_NOT_FOUND")


def test_a_change_needs_the_version_that_was_seen(room: GradingRoom, admin: httpx.Client) -> None:
    exam = create(admin)
    path = f"/api/exams/{exam['id']}"
    changed = admin.patch(path, json={"name": "Second name"}, headers={"If-Match": '"1"'})
    assert (changed.json()["name"], changed.json()["version"], changed.headers["ETag"]) == ("Second name", 2, '"2"')
    told = refused(admin.patch(path, json={"name": "Third"}, headers={"If-Match": '"1"'}), 412, "VERSION_MISMATCH")
    assert told["current"] == changed.json()
    assert admin.patch(path, json={"auto_validate": True}, headers={"If-Match": "*"}).json()["version"] == 3
    assert admin.patch(path, json={"auto_validate": True}).json()["version"] == 3, "nothing changed, nothing counted"
    events = room.events("exam", exam["id"])
    assert [event["leaf"]["metadata"].get("changed") for event in events] == [None, ["name"], ["auto_validate"]]
    assert "name" not in json.dumps([event["leaf"]["metadata"] for event in events]).replace('["name"]', "")


def test_of_two_changes_at_once_one_wins(admin: httpx.Client) -> None:
    exam = create(admin)

    def rename(number: int) -> int:
        headers = {"If-Match": '"1"'}
        return admin.patch(f"/api/exams/{exam['id']}", json={"name": f"Name {number}"}, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(rename, range(8))) == [200] + [412] * 7
    assert admin.get(f"/api/exams/{exam['id']}").json()["version"] == 2


def test_the_same_key_makes_one_exam(admin: httpx.Client) -> None:
    headers = {"Idempotency-Key": new_id()}
    first = admin.post("/api/exams", json=EXAM, headers=headers)
    again = admin.post("/api/exams", json=EXAM, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201) and first.json() == again.json()
    other = admin.post("/api/exams", json=EXAM | {"name": "Other"}, headers=headers)
    refused(other, 422, "IDEMPOTENCY_KEY_REUSED")


def test_the_list_is_paged_newest_first(admin: httpx.Client) -> None:
    made = [create(admin)["id"] for _ in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while cursor is not None or not seen:
        page = admin.get("/api/exams", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [exam["id"] for exam in page["items"]]
        cursor = page["next_cursor"]
    assert seen[:5] == made[::-1] and len(seen) == len(set(seen))
    for params in ({"limit": "0"}, {"limit": "501"}, {"cursor": "bogus"}, {"cursor": "WyJ4IiwieSJd"}):
        assert admin.get("/api/exams", params=params).status_code == 422


def test_copies_fix_how_scans_are_cut_and_marking_fixes_the_scheme(room: GradingRoom, admin: httpx.Client) -> None:
    exam = create(admin)
    path = f"/api/exams/{exam['id']}"
    split = {"split_config": {"mode": "A4_single", "pages_per_booklet": 0, "split_horizontal": False}}
    scheme = {"grading_structure": [{"id": "all", "label": "All", "points": 10}], "max_score": 10}
    assert admin.patch(path, json=split).json()["split_config"] == split["split_config"]
    add_copy(room, exam["id"], "READY")
    other = {"split_config": {"mode": "A4_single", "pages_per_booklet": 2, "split_horizontal": False}}
    refused(admin.patch(path, json=other), 409, "EXAM_HAS_COPIES")
    assert admin.patch(path, json=split).status_code == 200, "the same again is no change"
    assert admin.patch(path, json=scheme).json()["max_score"] == 10
    given_back = add_copy(room, exam["id"], "READY")
    with room.rt.db.transaction() as tx:
        tx.run(
            "INSERT INTO scores (copy_id, marking, scores, fence, updated_by) VALUES (%s, 1, '{\"all\": 300}', 1, %s)",
            (given_back, given_back),
        )
    back = {"grading_structure": EXAM["grading_structure"], "max_score": 20}
    refused(admin.patch(path, json=back), 409, "EXAM_HAS_COPIES")
    with room.rt.db.transaction() as tx:
        tx.run("DELETE FROM scores")
    assert admin.patch(path, json=back).json()["max_score"] == 20
    assert admin.patch(path, json=scheme).json()["max_score"] == 10
    add_copy(room, exam["id"], "LOCKED")
    refused(admin.patch(path, json=back), 409, "EXAM_HAS_COPIES")
    assert admin.patch(path, json={"name": "Renamed"} | scheme).json()["name"] == "Renamed"
    with room.rt.db.transaction() as tx:
        assert tx.row("SELECT scheme_version FROM exams WHERE id = %s", (exam["id"],))["scheme_version"] == 4


def test_other_rooms_ask_for_an_exam(
    room: GradingRoom, admin: httpx.Client, markers: dict[str, tuple[httpx.Client, str]]
) -> None:
    exam = create(admin, corrector_ids=[markers["marker"][1]])
    channels = Channels(room.settings.rpc, "ingest")

    def ask(exam_id: str, *roles: str) -> grading_pb2.GetExamResponse:
        person = Principal(new_id(), "x", roles) if roles else None
        with context.bind(principal=person, request_id="asked-by-a-test"), channels.asking("grading"):
            stub = channels.stub("grading", grading_pb2_grpc.ExamServiceStub)
            return stub.GetExam(grading_pb2.GetExamRequest(exam_id=exam_id))

    try:
        for roles in ((), ("admin",), ("scan_operator", "marker")):
            found = ask(exam["id"], *roles)
            assert (found.exam_id, found.split_mode, found.pages_per_booklet) == (exam["id"], "A3_to_A4", 4)
            assert list(found.corrector_ids) == exam["corrector_ids"] and found.version == 1
        for role in ("marker", "lead_marker", "student", "auditor"):
            with pytest.raises(Forbidden, match="FORBIDDEN"):
                ask(exam["id"], role)
        for unknown in (new_id(), "nope", ""):
            with pytest.raises(NotFound, match="EXAM_NOT_FOUND"):
                ask(unknown)
    finally:
        channels.close()


def test_every_label_is_there_from_the_start(room: GradingRoom, admin: httpx.Client) -> None:
    text = admin.get("/metrics").text
    for status in ("STAGING", "READY", "LOCKED", "GRADING_IN_PROGRESS", "GRADING_FAILED", "GRADED"):
        assert f'grading_copies_by_status{{status="{status}"}}' in text
    for state in ("active", "stale", "expired"):
        assert f'grading_locks{{state="{state}"}}' in text
    for kind in ("already_locked", "missing", "expired", "owner_mismatch", "token_mismatch", "already_graded",
                 "db_contention"):  # fmt: skip
        assert f'grading_lock_conflicts_total{{conflict_type="{kind}"}}' in text
    for status in ("success", "failed"):
        for attempt in ("1", "2", "3+"):
            labels = f'{{retry_attempt="{attempt}",status="{status}"}}'
            assert f"grading_finalize_duration_seconds_count{labels}" in text
