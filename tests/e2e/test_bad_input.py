"""Bad input at every endpoint of the story: the documented problem, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.client import Client, Json, Lock, uuid7
from harness.instance import Instance
from harness.instances import MakeUser
from harness.pdfs import Label, a4_scan
from harness.ready import ready_copy

NOWHERE = "0198c0de-0000-7000-8000-000000000000"
EXAM: Json = {
    "name": "X",
    "date": "2026-01-12",
    "split_config": {"mode": "A4_single", "pages_per_booklet": 0, "split_horizontal": True},
    "grading_structure": [{"id": "q1", "label": "Q1", "points": 20}],
    "max_score": 20,
    "auto_validate": True,
}
ANNOTATION: Json = {
    "page_index": 0, "x": 0.1, "y": 0.4, "w": 0.2, "h": 0.1, "type": "COMMENT", "content": "x",
}  # fmt: skip


def problem(response: httpx.Response, status: int | tuple[int, ...], *reasons: str) -> Json:
    """Assert that an answer is a problem document of this status (and one of these reasons) and return it."""
    allowed = (status,) if isinstance(status, int) else status
    assert response.status_code in allowed, response.text
    assert response.headers["Content-Type"].startswith("application/problem+json")
    found: Json = response.json()
    assert found["status"] == response.status_code
    assert found["reason"].isupper() and found["reason"].replace("_", "").isalnum()
    assert found["request_id"] == response.headers["X-Request-ID"]
    assert not reasons or found["reason"] in reasons, found
    assert "Traceback" not in response.text
    return found


@pytest.fixture(scope="module")
def work(admin: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, Lock]:
    """One locked copy with one annotation and a partial score, which bad input must leave alone."""
    copy = ready_copy(admin, tmp_path_factory.mktemp("bad"))
    lock = admin.lock(copy["id"])
    admin.annotate(lock, content="kept")
    admin.put_scores(lock, {"q1": 2}, "kept")
    return copy, lock


def snapshot(admin: Client, copy_id: str) -> str:
    """Return all that a refused write must not change."""
    state = [admin.copy(copy_id), admin.annotations(copy_id), admin.json("GET", f"/api/copies/{copy_id}/scores")]
    return json.dumps(state, sort_keys=True)


def merged(base: Json, *drop: str, **changes: Any) -> Json:
    return {key: value for key, value in (base | changes).items() if key not in drop}


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        merged(EXAM, "name"),
        merged(EXAM, name=""),
        merged(EXAM, name=7),
        merged(EXAM, name="a\x00b"),
        merged(EXAM, date="soon"),
        merged(EXAM, split_config={"mode": "A5"}),
        merged(EXAM, split_config={"mode": "A4_single", "pages_per_booklet": -1, "split_horizontal": True}),
        merged(EXAM, split_config={"mode": "A4_single", "pages_per_booklet": 1.5, "split_horizontal": True}),
        merged(EXAM, max_score=19),
        merged(EXAM, max_score=-20),
        merged(EXAM, max_score="NaN"),
        merged(EXAM, grading_structure=[]),
        merged(EXAM, grading_structure=[{"id": "q1", "label": "Q1", "points": 20.001}], max_score=20.001),
        merged(EXAM, grading_structure=[{"id": "q1", "label": "Q1", "points": -20}], max_score=-20),
        merged(
            EXAM,
            grading_structure=[{"id": "q", "label": "A", "points": 10}, {"id": "q", "label": "B", "points": 10}],
        ),
        merged(EXAM, corrector_ids=["nobody"]),
        merged(EXAM, corrector_ids=[NOWHERE]),
        merged(EXAM, colour="red"),
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_exams(admin: Client, body: object) -> None:
    before = len(admin.items("/api/exams"))
    problem(admin.http.post("/api/exams", json=body), 422)
    assert len(admin.items("/api/exams")) == before


def test_bodies_that_are_no_json(admin: Client) -> None:
    for content in (b"{", b"\xff\xfe", b"", b'{"name": NaN'):
        headers = {"Content-Type": "application/json"}
        problem(admin.http.post("/api/exams", content=content, headers=headers), (400, 422))
    problem(admin.http.post("/api/exams", content=b"a=1", headers={"Content-Type": "text/plain"}), (400, 415, 422))


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"x": 0.9, "w": 0.2}, ("ANNOTATION_OUT_OF_PAGE",)),
        ({"y": 0.95, "h": 0.2}, ("ANNOTATION_OUT_OF_PAGE",)),
        ({"page_index": 99}, ()),
        ({"page_index": -1}, ()),
        ({"page_index": None}, ()),
        ({"page_id": NOWHERE, "page_index": None}, ()),
        ({"x": -0.1}, ()),
        ({"w": 0}, ()),
        ({"x": "0.1"}, ()),
        ({"x": None}, ()),
        ({"x": True}, ()),
        ({"x": 1e308, "w": 1e308}, ()),
        ({"type": "COMMENTS"}, ()),
        ({"type": None}, ()),
        ({"content": "\U0001f600"}, ("UNSUPPORTED_CHARACTER",)),
        ({"content": "漢字"}, ("UNSUPPORTED_CHARACTER",)),
        ({"content": "a\x00b"}, ()),
        ({"content": 7}, ()),
        ({"content": "x" * 100_001}, ()),
        ({"score_delta": 0.001}, ()),
        ({"score_delta": "1"}, ()),
        ({"score_delta": 1e12}, ()),
        ({"question_id": "nope"}, ()),
        ({"type": "INK", "strokes": [{"width": -1, "points": [[0.1, 0.1]]}]}, ()),
        ({"type": "INK", "strokes": [{"width": 0.01, "points": [[2, 2]]}]}, ()),
        ({"type": "INK", "strokes": "zigzag"}, ()),
        ({"id": "not-a-uuid"}, ()),
        ({"version": 9, "colour": "red"}, ()),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_annotations(admin: Client, work: tuple[Json, Lock], change: Json, reasons: tuple[str, ...]) -> None:
    copy, lock = work
    before = snapshot(admin, copy["id"])
    path = f"/api/copies/{copy['id']}/annotations"
    problem(admin.http.post(path, json=ANNOTATION | change, headers=lock.headers), 422, *reasons)
    annotation = admin.annotations(copy["id"])[0]
    if "page_id" not in change and "id" not in change and change != {"page_index": None}:
        headers = lock.headers | {"If-Match": f'"{annotation["version"]}"'}
        problem(admin.http.patch(f"{path}/{annotation['id']}", json=change, headers=headers), 422, *reasons)
    assert snapshot(admin, copy["id"]) == before


def test_numbers_that_json_does_not_know(admin: Client, work: tuple[Json, Lock]) -> None:
    copy, lock = work
    before = snapshot(admin, copy["id"])
    headers = lock.headers | {"Content-Type": "application/json"}
    for word in ("NaN", "Infinity", "-Infinity"):
        text = json.dumps(ANNOTATION).replace("0.1", word)
        sent = admin.http.post(f"/api/copies/{copy['id']}/annotations", content=text, headers=headers)
        problem(sent, (400, 422))
        scores = f'{{"scores": {{"q1": {word}}}}}'
        sent = admin.http.put(f"/api/copies/{copy['id']}/scores", content=scores, headers=headers | {"If-Match": "*"})
        problem(sent, (400, 422))
    assert snapshot(admin, copy["id"]) == before


@pytest.mark.parametrize(
    "scores",
    [
        {"q1": 8.01}, {"q1": -1}, {"q1": 0.001}, {"q1": "5"}, {"q1": "nt"}, {"q1": True}, {"q1": [1]}, {"q9": 1},
        {"": 1}, {"q1": 1, "q9": 1}, [], "all", None,
    ],
    ids=json.dumps,
)  # fmt: skip
def test_scores(admin: Client, work: tuple[Json, Lock], scores: object) -> None:
    copy, lock = work
    before = snapshot(admin, copy["id"])
    sent = admin.http.put(
        f"/api/copies/{copy['id']}/scores", json={"scores": scores}, headers=lock.headers | {"If-Match": "*"}
    )
    problem(sent, 422)
    assert snapshot(admin, copy["id"]) == before


def test_text_beyond_the_font_is_refused_when_written(admin: Client, work: tuple[Json, Lock]) -> None:
    copy, lock = work
    body = {"scores": {}, "appreciation": "bravo \U0001f389"}
    sent = admin.http.put(f"/api/copies/{copy['id']}/scores", json=body, headers=lock.headers | {"If-Match": "*"})
    problem(sent, 422, "UNSUPPORTED_CHARACTER")
    for good in ("éàçœŒÿ ≤ ≥ ≠ ∞ √ → ×", "αβγδ ΣΩπ", "plain", "line\nbreak"):
        annotation = admin.annotate(lock, content=good)
        assert annotation["content"] == good
        admin.delete_annotation(lock, annotation)


def test_versions(admin: Client, work: tuple[Json, Lock]) -> None:
    copy, lock = work
    before = snapshot(admin, copy["id"])
    annotation = admin.annotations(copy["id"])[0]
    path = f"/api/copies/{copy['id']}/annotations/{annotation['id']}"
    problem(admin.http.patch(path, json={"content": "n"}, headers=lock.headers), 428)
    stale = lock.headers | {"If-Match": '"999"'}
    told = problem(admin.http.patch(path, json={"content": "n"}, headers=stale), 412, "VERSION_MISMATCH")
    assert told["current"]["content"] == "kept" and told["current"]["version"] == annotation["version"]
    problem(admin.http.delete(path, headers=lock.headers), 428)
    problem(admin.http.delete(path, headers=stale), 412, "VERSION_MISMATCH")
    scores = f"/api/copies/{copy['id']}/scores"
    problem(admin.http.put(scores, json={"scores": {}}, headers=lock.headers), 428)
    problem(admin.http.put(scores, json={"scores": {}}, headers=stale), 412, "VERSION_MISMATCH")
    problem(admin.http.patch(path, json={"content": "n"}, headers=lock.headers | {"If-Match": "soon"}), (400, 412, 422))
    missing = f"/api/copies/{copy['id']}/annotations/{NOWHERE}"
    problem(admin.http.patch(missing, json={"content": "n"}, headers=lock.headers | {"If-Match": "*"}), 404)
    assert snapshot(admin, copy["id"]) == before


def test_unfinished_scores_do_not_finalise(admin: Client, work: tuple[Json, Lock]) -> None:
    copy, lock = work
    before = snapshot(admin, copy["id"])
    path = f"/api/copies/{copy['id']}/finalize"
    problem(admin.http.post(path, json={}, headers=lock.headers), 409, "SCORE_INCOMPLETE")
    problem(admin.http.post(path, json={}), 403, "INVALID_LOCK_TOKEN")
    problem(admin.http.get(f"/api/copies/{copy['id']}/final-pdf"), 404)
    assert snapshot(admin, copy["id"]) == before


@pytest.mark.parametrize("copy_id", [NOWHERE, "nope", "%00", "1"])
def test_copies_that_do_not_exist(admin: Client, copy_id: str) -> None:
    token = {"X-Lock-Token": uuid7(), "If-Match": "*"}
    calls: list[Callable[[], httpx.Response]] = [
        lambda: admin.http.get(f"/api/copies/{copy_id}"),
        lambda: admin.http.post(f"/api/copies/{copy_id}/validate", json={}),
        lambda: admin.http.post(f"/api/copies/{copy_id}/lock", json={}),
        lambda: admin.http.post(f"/api/copies/{copy_id}/lock/heartbeat", headers=token),
        lambda: admin.http.get(f"/api/copies/{copy_id}/annotations"),
        lambda: admin.http.post(f"/api/copies/{copy_id}/annotations", json=ANNOTATION, headers=token),
        lambda: admin.http.get(f"/api/copies/{copy_id}/scores"),
        lambda: admin.http.put(f"/api/copies/{copy_id}/scores", json={"scores": {}}, headers=token),
        lambda: admin.http.post(f"/api/copies/{copy_id}/finalize", json={}, headers=token),
        lambda: admin.http.get(f"/api/copies/{copy_id}/final-pdf"),
        lambda: admin.http.get(f"/api/exams/{copy_id}"),
        lambda: admin.http.get(f"/api/exams/{copy_id}/copies"),
        lambda: admin.http.get(f"/api/scans/{copy_id}"),
        lambda: admin.http.get(f"/api/pages/{copy_id}/image"),
    ]
    for call in calls:
        problem(call(), (404, 422) if copy_id != NOWHERE else 404)


def test_uploads(admin: Client, tmp_path: Path) -> None:
    exam = admin.create_exam("Uploads")
    path = a4_scan(tmp_path / "a.pdf", [Label(90, 1, 1)])
    good = ("a.pdf", path.read_bytes(), "application/pdf")

    def post(file: tuple[str, bytes, str] | None, **params: str) -> httpx.Response:
        files = {"file": file} if file else {"other": good}
        return admin.http.post("/api/scans", params=params, files=files)

    problem(post(good), 422)
    problem(post(good, exam_id="nope"), (404, 422))
    problem(post(good, exam_id=NOWHERE), 404)
    problem(post(None, exam_id=exam["id"]), 422)
    problem(post(("a.pdf", b"", "application/pdf"), exam_id=exam["id"]), (415, 422), "EMPTY_FILE")
    problem(post(("a.pdf", b"hello" * 99, "application/pdf"), exam_id=exam["id"]), (415, 422), "INVALID_MIME_TYPE")
    problem(admin.http.post("/api/scans", params={"exam_id": exam["id"]}, content=b"x"), (400, 415, 422))
    key = {"Idempotency-Key": uuid7()}
    first = admin.http.post("/api/scans", params={"exam_id": exam["id"]}, files={"file": good}, headers=key)
    assert first.status_code == 202
    other = ("b.pdf", a4_scan(tmp_path / "b.pdf", [Label(91, 1, 1)]).read_bytes(), "application/pdf")
    again = admin.http.post("/api/scans", params={"exam_id": exam["id"]}, files={"file": other}, headers=key)
    problem(again, 422)


def test_a_file_beyond_the_limit_is_refused(admin: Client, tmp_path: Path) -> None:
    exam = admin.create_exam("Too large")
    huge = tmp_path / "huge.pdf"
    with huge.open("wb") as out:
        out.write(b"%PDF-1.7\n")
        out.truncate(101 * 1024 * 1024)
    with huge.open("rb") as body:
        sent = admin.http.post(
            "/api/scans",
            params={"exam_id": exam["id"]},
            files={"file": ("huge.pdf", body, "application/pdf")},
            timeout=120,
        )
    problem(sent, 413, "FILE_TOO_LARGE")


def test_who_may_not(instance: Instance, admin: Client, make_user: MakeUser, work: tuple[Json, Lock]) -> None:
    copy, lock = work
    before = snapshot(admin, copy["id"])
    with httpx.Client(base_url=instance.url, trust_env=False) as nobody:
        for path in ("/api/me", "/api/exams", f"/api/copies/{copy['id']}", f"/api/audit/copies/{copy['id']}"):
            problem(nobody.get(path), 401)
        nobody.headers["Authorization"] = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."
        problem(nobody.get("/api/exams"), 401)
        problem(nobody.post("/api/login", json={"username": "admin"}), 422)
        problem(nobody.post("/api/login", json={"username": f"u{uuid7()}", "password": "wrong-password"}), 401)
    for role in ("marker", "student"):
        user = make_user(role).http
        problem(user.post("/api/exams", json=EXAM), 403)
        problem(user.get("/api/users"), 403)
        problem(user.post(f"/api/copies/{copy['id']}/validate", json={}), (403, 404))
        problem(user.post(f"/api/copies/{copy['id']}/lock", json={}), (403, 404))
        problem(user.get(f"/api/copies/{copy['id']}/annotations"), (403, 404))
        problem(user.get(f"/api/audit/copies/{copy['id']}"), (403, 404))
        problem(user.post(f"/api/copies/{copy['id']}/finalize", json={}, headers=lock.headers), (403, 404, 409))
    for body in ({"username": "x"}, {"username": "y", "password": "short", "roles": ["marker"]}):
        problem(admin.http.post("/api/users", json=body), 422)
    problem(admin.http.post("/api/users", json={"username": "z", "password": "long-enough-1", "roles": ["king"]}), 422)
    taken = {"username": "admin", "password": "long-enough-1", "roles": ["marker"]}
    problem(admin.http.post("/api/users", json=taken), 409)
    problem(admin.http.patch(f"/api/users/{admin.user['id']}", json={"active": False}), 409)
    assert snapshot(admin, copy["id"]) == before


def test_the_shape_of_the_surface(admin: Client, work: tuple[Json, Lock]) -> None:
    copy, _ = work
    problem(admin.http.get("/api/nowhere"), 404)
    problem(admin.http.delete("/api/exams"), 405)
    for path in ("/api/exams", f"/api/copies/{copy['id']}", "/api/health"):
        plain, slash = admin.http.get(path), admin.http.get(path + "/")
        assert (plain.status_code, slash.status_code) == (200, 200)
        head = admin.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
    assert admin.http.get("/").status_code == 200
    for path in ("/api/exams", f"/api/exams/{copy['exam_id']}/copies", "/api/users"):
        assert set(admin.http.get(path).json()) >= {"items", "next_cursor"}
        for params in ({"limit": "0"}, {"limit": "x"}, {"limit": "-1"}, {"cursor": "bogus"}):
            problem(admin.http.get(path, params=params), 422)
    given = "abc-DEF_123.x"
    assert admin.http.get("/api/me", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    for bad in ("short", "x" * 65, "with space in it", "semi;colon;here"):
        made = admin.http.get("/api/me", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        assert made != bad and 8 <= len(made) <= 64
    assert admin.http.get(f"/api/copies/{copy['id']}").headers["ETag"]


def test_paging_gives_everything_once(admin: Client) -> None:
    made = [admin.create_exam(f"Page {number}")["id"] for number in range(5)]
    seen = [exam["id"] for exam in admin.items("/api/exams", limit=2)]
    assert len(seen) == len(set(seen)) and set(made) <= set(seen)
