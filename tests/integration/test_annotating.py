"""Annotations under a lease: made once, changed by who has seen them, told without their text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from harness.grading_copies import Desk, annotation
from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_grading.flows import annotating, locking
from korrigo_grading.flows.locking import Wish
from korrigo_grading.models.annotations import Annotation
from korrigo_kit.auth import Principal
from korrigo_kit.errors import KorrigoError, Stale


@pytest.fixture(scope="module")
def room(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradingRoom]:
    served = GradingRoom(postgres_server, Path(tmp_path_factory.mktemp("grading")))
    yield served
    served.close()


@pytest.fixture(scope="module")
def desk(room: GradingRoom) -> Desk:
    return Desk(room.rt)


@pytest.fixture
def copy_id(desk: Desk) -> str:
    return desk.ready()


@pytest.fixture
def token(desk: Desk, copy_id: str) -> str:
    return locking.acquire(desk.rt, desk.admin, copy_id, Wish()).token


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """Return (status, reason) of a call that must be refused."""
    with pytest.raises(KorrigoError) as refused:
        call()
    return refused.value.status, refused.value.reason


def seen(_: object) -> None:
    """Approve any version, as `If-Match: *` does."""


def test_made_changed_deleted_and_told_without_the_text(desk: Desk, copy_id: str, token: str) -> None:
    made, is_new = annotating.create(
        desk.rt, desk.admin, copy_id, token, annotation(content="Zoé a tort", score_delta=-0.5, question_id="q2a")
    )
    assert is_new and (made.version, made.score_delta, made.page_index) == (1, -50, 0)
    changed = annotating.change(
        desk.rt,
        desk.admin,
        copy_id,
        made.id,
        token,
        seen,
        {"content": "Zoé a raison", "score_delta": 1, "page_index": 1},
    )
    assert (changed.version, changed.score_delta, changed.page_index) == (2, 100, 1)
    same = annotating.change(desk.rt, desk.admin, copy_id, made.id, token, seen, {"content": "Zoé a raison"})
    assert same.version == 2, "nothing new is nothing written"
    annotating.delete(desk.rt, desk.admin, copy_id, made.id, token, seen)
    assert annotating.listed(desk.rt, desk.admin, copy_id, None, 10) == []
    assert desk.acts(copy_id)[2:] == [
        ("CREATE_ANN", {"annotation_id": made.id, "page": 0, "type": "COMMENT", "score_delta": -0.5, "version": 1}),
        (
            "UPDATE_ANN",
            {
                "annotation_id": made.id,
                "page": 1,
                "changed": ["content", "page_id", "page_index", "score_delta"],
                "version_from": 1,
                "version_to": 2,
                "score_delta_from": -0.5,
                "score_delta_to": 1,
            },
        ),
        ("DELETE_ANN", {"annotation_id": made.id, "page": 1, "version": 3}),
    ]
    told = desk.sql("SELECT outbox::text AS row FROM outbox WHERE subject_id = %s", copy_id)
    assert "Zo" not in str(desk.acts(copy_id)) and not [1 for event in told if "tort" in event["row"]]
    [row] = desk.sql("SELECT deleted_at, content FROM annotations WHERE id = %s", made.id)
    assert row["deleted_at"] is not None and row["content"] == "Zoé a raison", "a tombstone can be undone"


def test_the_repetition_of_a_create_is_the_same_annotation(desk: Desk, copy_id: str, token: str) -> None:
    body = annotation()
    first, _ = annotating.create(desk.rt, desk.admin, copy_id, token, body)
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda _: annotating.create(desk.rt, desk.admin, copy_id, token, body), range(8)))
    assert {(made.id, made.version, is_new) for made, is_new in again} == {(first.id, 1, False)}
    assert desk.actions(copy_id).count("CREATE_ANN") == 1
    other = {**body, "content": "another"}
    assert refusal(lambda: annotating.create(desk.rt, desk.admin, copy_id, token, other)) == (409, "ANNOTATION_EXISTS")
    changed = annotating.change(desk.rt, desk.admin, copy_id, first.id, token, seen, {"content": "later"})
    late, is_new = annotating.create(desk.rt, desk.admin, copy_id, token, body)
    assert (late.content, late.version, is_new) == (changed.content, 2, False), "a late twin undoes nothing"
    annotating.delete(desk.rt, desk.admin, copy_id, first.id, token, seen)
    assert refusal(lambda: annotating.create(desk.rt, desk.admin, copy_id, token, body)) == (409, "ANNOTATION_DELETED")


def test_the_same_id_on_another_copy_is_another_annotation(desk: Desk, copy_id: str, token: str) -> None:
    body = annotation()
    annotating.create(desk.rt, desk.admin, copy_id, token, body)
    other = desk.ready()
    held = locking.acquire(desk.rt, desk.admin, other, Wish())
    made, is_new = annotating.create(desk.rt, desk.admin, other, held.token, {**body, "content": "elsewhere"})
    assert is_new and made.content == "elsewhere"
    [kept] = annotating.listed(desk.rt, desk.admin, copy_id, None, 10)
    assert kept.content == body["content"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": 0.9, "w": 0.2}, "ANNOTATION_OUT_OF_PAGE"),
        ({"x": "0.1"}, "INVALID_COORDINATES"),
        ({"page_index": 2}, "INVALID_PAGE"),
        ({"page_index": ...}, "INVALID_PAGE"),
        ({"page_id": "0198c0de-0000-7000-8000-000000000000", "page_index": ...}, "INVALID_PAGE"),
        ({"question_id": "q2"}, "UNKNOWN_QUESTION"),
        ({"question_id": "nope"}, "UNKNOWN_QUESTION"),
        ({"score_delta": 0.1}, "INVALID_SCORE_DELTA"),
        ({"type": "SCRIBBLE"}, "INVALID_ANNOTATION_TYPE"),
        ({"content": "漢"}, "UNSUPPORTED_CHARACTER"),
        ({"content": "a\x00b"}, "UNSUPPORTED_CHARACTER"),
        ({"content": "x" * 10_001}, "CONTENT_TOO_LONG"),
        ({"type": "INK", "strokes": [{"width": 1, "points": [[2, 2]]}]}, "INVALID_STROKES"),
    ],
)
def test_wrong_annotations_are_refused(
    desk: Desk, copy_id: str, token: str, change: dict[str, Any], reason: str
) -> None:
    body = annotation(**change)
    assert refusal(lambda: annotating.create(desk.rt, desk.admin, copy_id, token, body)) == (422, reason)
    assert annotating.listed(desk.rt, desk.admin, copy_id, None, 10) == []
    if ... in change.values():
        return
    made, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation())
    patched = refusal(lambda: annotating.change(desk.rt, desk.admin, copy_id, made.id, token, seen, change))
    assert patched == (422, reason)


def test_leaf_questions_may_be_bound_and_unbound(desk: Desk, copy_id: str, token: str) -> None:
    made, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation(question_id="q2b"))
    assert made.question_id == "q2b"
    changed = annotating.change(desk.rt, desk.admin, copy_id, made.id, token, seen, {"question_id": None})
    assert changed.question_id is None


def test_pages_by_id_or_index(desk: Desk, copy_id: str, token: str) -> None:
    ids = [str(row["page_id"]) for row in desk.sql(
        "SELECT page_id FROM copy_pages WHERE copy_id = %s ORDER BY page_index", copy_id
    )]  # fmt: skip
    made, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation(page_index=..., page_id=ids[1]))
    assert (made.page_id, made.page_index) == (ids[1], 1)
    both, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation(page_index=0, page_id=ids[0]))
    assert both.page_index == 0
    contradiction = annotation(page_index=0, page_id=ids[1])
    assert refusal(lambda: annotating.create(desk.rt, desk.admin, copy_id, token, contradiction))[1] == "INVALID_PAGE"


def test_a_page_that_left_keeps_its_annotation(desk: Desk) -> None:
    exam_id = desk.exam()
    copy_id = desk.stage(exam_id)
    desk.assemble(copy_id, exam_id)
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish())
    annotating.create(desk.rt, desk.admin, copy_id, held.token, annotation())
    locking.release(desk.rt, desk.admin, copy_id, held.token)
    desk.assemble(copy_id, exam_id, assembly=2)
    [kept] = annotating.listed(desk.rt, desk.admin, copy_id, None, 10)
    assert kept.page_index is None
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish())
    moved = annotating.change(desk.rt, desk.admin, copy_id, kept.id, held.token, seen, {"page_index": 1})
    assert moved.page_index == 1


def test_two_writers_of_one_version(desk: Desk, copy_id: str, token: str) -> None:
    """Sixteen changes based on one version: one wins, the others are told what is there now."""
    made, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation())

    def approve(row: Annotation) -> None:
        if row.version != 1:
            raise Stale("VERSION_MISMATCH", "not seen")

    def attempt(n: int) -> str:
        try:
            annotating.change(desk.rt, desk.admin, copy_id, made.id, token, approve, {"content": f"c{n}"})
        except KorrigoError as error:
            return error.reason
        return "changed"

    with ThreadPoolExecutor(16) as pool:
        answers = sorted(pool.map(attempt, range(16)))
    assert answers == [*["VERSION_MISMATCH"] * 15, "changed"]
    assert desk.actions(copy_id).count("UPDATE_ANN") == 1


def test_the_database_refuses_what_got_past_the_code(desk: Desk, copy_id: str, token: str) -> None:
    made, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation())
    for wrong in ("x = 'NaN'", "x = -0.1", "w = 0", "w = 0.95", "y = 'Infinity'", "type = 'ODD'"):
        with pytest.raises(psycopg.errors.CheckViolation):
            desk.sql(f"UPDATE annotations SET {wrong} WHERE id = %s", made.id)


# ------------------------------------------------------------------------------------------------------ HTTP
def problem(answer: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    return dict(answer.json())


def test_annotations_over_http(room: GradingRoom, desk: Desk, copy_id: str) -> None:
    admin = room.log_in()
    lock = admin.post(f"/api/copies/{copy_id}/lock", json={"client_id": "t"})
    assert lock.status_code == 201
    token = {"X-Lock-Token": lock.json()["token"]}
    path = f"/api/copies/{copy_id}/annotations"
    body = annotation(score_delta=0.5, content="√2 ≤ 3", type="COMMENTAIRE")
    problem(admin.post(path, json=body), 403, "INVALID_LOCK_TOKEN")
    made = admin.post(path, json=body, headers=token)
    assert made.status_code == 201 and made.headers["ETag"] == '"1"'
    document = made.json()
    assert (document["id"], document["type"], document["score_delta"], document["version"]) == (
        body["id"], "COMMENT", 0.5, 1,
    )  # fmt: skip
    assert admin.post(path, json=body, headers=token).status_code == 200
    one = f"{path}/{body['id']}"
    problem(admin.patch(one, json={"content": "n"}, headers=token), 428, "IF_MATCH_REQUIRED")
    stale = admin.patch(one, json={"content": "n"}, headers={**token, "If-Match": '"7"'})
    assert problem(stale, 412, "VERSION_MISMATCH")["current"]["content"] == "√2 ≤ 3"
    changed = admin.patch(one, json={"content": "new", "score_delta": None}, headers={**token, "If-Match": '"1"'})
    assert changed.status_code == 200 and changed.headers["ETag"] == '"2"'
    assert (changed.json()["content"], changed.json()["score_delta"]) == ("new", None)
    for text in ('{"x": NaN}', '{"x": "0.1"}', '{"x": null}'):
        sent = admin.patch(one, content=text, headers={**token, "If-Match": "*", "Content-Type": "application/json"})
        problem(sent, 422, "INVALID_COORDINATES")
    problem(admin.patch(one, json={"colour": 1}, headers={**token, "If-Match": "*"}), 422, "VALIDATION_ERROR")
    for _ in range(3):
        admin.post(path, json=annotation(), headers=token)
    listed, cursor = [], None
    while True:
        page = admin.get(path, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        listed += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert len(listed) == len(set(listed)) == 4 and listed[0] == body["id"]
    problem(admin.delete(one, headers=token), 428, "IF_MATCH_REQUIRED")
    assert admin.delete(one, headers={**token, "If-Match": '"2"'}).status_code == 204
    problem(admin.delete(one, headers={**token, "If-Match": "*"}), 404, "ANNOTATION_NOT_FOUND")
    problem(admin.patch(one, json={"content": "n"}, headers={**token, "If-Match": "*"}), 404, "ANNOTATION_NOT_FOUND")
    stranger, _ = room.user("annotates-nothing", "marker")
    problem(stranger.get(path), 404, "COPY_NOT_FOUND")
    problem(stranger.post(path, json=annotation(), headers=token), 404, "COPY_NOT_FOUND")
    student, _ = room.user("a-student", "student")
    problem(student.get(path), 403, "FORBIDDEN")


def test_a_write_never_revives_a_lease(desk: Desk, copy_id: str, token: str) -> None:
    ada: Principal = desk.admin
    desk.age_lock(copy_id, 1801)
    body = annotation()
    assert refusal(lambda: annotating.create(desk.rt, ada, copy_id, token, body)) == (409, "LOCK_EXPIRED")
    again = locking.acquire(desk.rt, ada, copy_id, Wish())
    made, is_new = annotating.create(desk.rt, ada, copy_id, again.token, body)
    assert is_new and made.id == body["id"]
