"""Scores under a lease: merged question by question, one computation everywhere, told in hundredths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.grading_copies import Desk, annotation
from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_grading.flows import annotating, locking, scoring
from korrigo_grading.flows.locking import Wish
from korrigo_grading.flows.scoring import Marks
from korrigo_kit.errors import KorrigoError


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


def write(desk: Desk, copy_id: str, token: str, **given: Any) -> Marks:
    return scoring.write(desk.rt, desk.admin, copy_id, token, given, lambda _: None)


def test_what_is_left_out_stays_and_null_clears(desk: Desk, copy_id: str, token: str) -> None:
    assert scoring.read(desk.rt, desk.admin, copy_id).written.version == 0
    first = write(desk, copy_id, token, scores={"q1": 7.75, "q2a": "NT"}, appreciation="Très bien")
    assert (first.written.version, first.sheet.total, first.sheet.missing) == (1, 775, ("q2b",))
    second = write(desk, copy_id, token, scores={"q2b": 0})
    assert (second.written.version, second.sheet.is_complete, second.written.appreciation) == (2, True, "Très bien")
    third = write(desk, copy_id, token, scores={"q2a": None}, appreciation=None)
    assert (third.sheet.missing, third.written.appreciation) == (("q2a",), None)
    same = write(desk, copy_id, token, scores={"q1": 7.75})
    assert same.written.version == 3, "nothing new is nothing written"
    told = [metadata for action, metadata in desk.acts(copy_id) if action == "SCORE"]
    commitment = told[0].pop("appreciation_commitment")
    assert len(commitment) == 64
    assert told == [
        {
            "changed": {"q1": {"from": None, "to": 775}, "q2a": {"from": None, "to": "NT"}},
            "appreciation_changed": True,
            "version": 1,
        },
        {"changed": {"q2b": {"from": None, "to": 0}}, "appreciation_changed": False, "version": 2},
        {"changed": {"q2a": {"from": "NT", "to": None}}, "appreciation_changed": True, "version": 3},
    ]
    assert "bien" not in str(desk.acts(copy_id))


@pytest.mark.parametrize(
    "scores", [{"q1": 8.01}, {"q1": -1}, {"q1": 0.001}, {"q1": "5"}, {"q1": True}, {"q2": 1}, {"q1": float("nan")}]
)
def test_wrong_scores_change_nothing(desk: Desk, copy_id: str, token: str, scores: dict[str, Any]) -> None:
    write(desk, copy_id, token, scores={"q2a": 1})
    assert refusal(lambda: write(desk, copy_id, token, scores={"q2b": 2, **scores})) == (422, "INVALID_SCORE")
    marks = scoring.read(desk.rt, desk.admin, copy_id)
    assert (marks.written.scores, marks.written.version) == ({"q2a": 100}, 1)


def test_text_is_checked_when_it_is_written(desk: Desk, copy_id: str, token: str) -> None:
    assert refusal(lambda: write(desk, copy_id, token, appreciation="bravo \U0001f389")) == (
        422, "UNSUPPORTED_CHARACTER",
    )  # fmt: skip
    assert write(desk, copy_id, token, appreciation="œuvre ≤ √2\nbien").written.appreciation == "œuvre ≤ √2\nbien"


def test_annotations_count_where_nothing_was_written(desk: Desk, copy_id: str, token: str) -> None:
    for delta, question in ((2, "q1"), (-0.5, "q1"), (1, "q2a"), (0.25, None)):
        annotating.create(desk.rt, desk.admin, copy_id, token, annotation(score_delta=delta, question_id=question))
    marks = write(desk, copy_id, token, scores={"q2a": 3})
    assert [line.score for line in marks.sheet.lines] == [150, 300, None]
    assert marks.sheet.total == 150 + 300 + 25


def test_merges_at_once_lose_nothing(desk: Desk, copy_id: str, token: str) -> None:
    """Three questions written at once by one token, eight times each: every question keeps its last value."""
    values = [(question, n) for n in range(8) for question in ("q1", "q2a", "q2b")]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda pair: write(desk, copy_id, token, scores={pair[0]: pair[1] / 4}), values))
    marks = scoring.read(desk.rt, desk.admin, copy_id)
    told = [metadata for action, metadata in desk.acts(copy_id) if action == "SCORE"]
    assert marks.written.version == len(told)
    replayed: dict[str, Any] = {}
    for metadata in told:
        for question, change in metadata["changed"].items():
            assert replayed.get(question) == change["from"], "the events tell an unbroken story"
            replayed[question] = change["to"]
    assert replayed == marks.written.scores and set(replayed) == {"q1", "q2a", "q2b"}


def problem(answer: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    return dict(answer.json())


def test_scores_over_http(room: GradingRoom, copy_id: str) -> None:
    admin = room.log_in()
    path = f"/api/copies/{copy_id}/scores"
    empty = admin.get(path)
    assert empty.headers["ETag"] == '"0"'
    assert empty.json() == {
        "scores": {"q1": None, "q2a": None, "q2b": None},
        "questions": [
            {"id": "q1", "label": "Question 1", "max": 8, "score": None},
            {"id": "q2a", "label": "2a", "max": 5, "score": None},
            {"id": "q2b", "label": "2b", "max": 7, "score": None},
        ],
        "total": 0,
        "max_score": 20,
        "complete": False,
        "appreciation": None,
        "version": 0,
    }
    problem(admin.put(path, json={"scores": {"q1": 1}}, headers={"If-Match": "*"}), 409, "LOCK_MISSING")
    token = {"X-Lock-Token": admin.post(f"/api/copies/{copy_id}/lock", json={}).json()["token"]}
    problem(admin.put(path, json={"scores": {"q1": 1}}, headers=token), 428, "IF_MATCH_REQUIRED")
    first = admin.put(path, json={"scores": {"q1": 7.75}}, headers={**token, "If-Match": '"0"'})
    assert (first.status_code, first.headers["ETag"], first.json()["total"]) == (200, '"1"', 7.75)
    stale = admin.put(path, json={"scores": {"q1": 1}}, headers={**token, "If-Match": '"0"'})
    assert problem(stale, 412, "VERSION_MISMATCH")["current"]["scores"]["q1"] == 7.75
    whole = admin.put(
        path, json={"scores": {"q2a": "NT", "q2b": 7}, "appreciation": "ok"}, headers={**token, "If-Match": "*"}
    ).json()
    assert (whole["total"], whole["complete"], whole["appreciation"]) == (14.75, True, "ok")
    assert [question["score"] for question in whole["questions"]] == [7.75, "NT", 7]
    bodies: list[Any] = [{"scores": []}, {"scores": None}, {"scores": "all"}, {"marks": {}}, []]
    for body in bodies:
        problem(admin.put(path, json=body, headers={**token, "If-Match": "*"}), 422, "VALIDATION_ERROR")
    for value in ("NaN", "Infinity", "-Infinity"):
        sent = admin.put(
            path,
            content=f'{{"scores": {{"q1": {value}}}}}',
            headers={**token, "If-Match": "*", "Content-Type": "application/json"},
        )
        problem(sent, 422, "INVALID_SCORE")
    assert admin.get(path).json() == whole
