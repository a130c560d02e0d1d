"""From a marked copy to GRADED: one success per revision, failures told, reopened copies, the PDF itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.grading_copies import LEAVES, Desk, annotation, sha256
from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_grading.flows import annotating, finalize, locking, scoring
from korrigo_grading.flows.finalize import Requested
from korrigo_grading.flows.locking import Wish
from korrigo_kit.db import Tx
from korrigo_kit.errors import KorrigoError
from korrigo_kit.inbox import Outcome
from korrigo_protos.grading.v1 import events_pb2 as grading_pb2
from korrigo_protos.render.v1 import events_pb2 as render_pb2

PDF = b"%PDF-1.7 " + bytes(range(256)) * 8


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


def forget(tx: Tx, done: Requested) -> None:
    """Remember nothing."""


def marked(desk: Desk, copy_id: str, *, points: float = 2.5) -> str:
    """Lock a copy and score all of it; returns the token."""
    token = locking.acquire(desk.rt, desk.admin, copy_id, Wish()).token
    given = {"scores": dict.fromkeys(LEAVES, points), "appreciation": "Très bien"}
    scoring.write(desk.rt, desk.admin, copy_id, token, given, lambda _: None)
    return token


def requested(desk: Desk, *, points: float = 2.5) -> str:
    """Make a copy whose final PDF was asked for."""
    copy_id = desk.ready()
    finalize.request(desk.rt, desk.admin, copy_id, marked(desk, copy_id, points=points), forget)
    return copy_id


def test_a_request_freezes_everything_in_the_manifest(desk: Desk) -> None:
    copy_id = desk.ready()
    token = marked(desk, copy_id)
    made, _ = annotating.create(
        desk.rt, desk.admin, copy_id, token,
        annotation(content="Clair", score_delta=-0.5, question_id="q2a", type="INK", page_index=1,
                   strokes=[{"width": 1.5, "points": [[0.1, 0.2], [0.3, 0.4, 0.5]]}]),
    )  # fmt: skip
    gone, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation(content="weg"))
    annotating.delete(desk.rt, desk.admin, copy_id, gone.id, token, lambda _: None)
    done = finalize.request(desk.rt, desk.admin, copy_id, token, forget)
    row = desk.newest(copy_id)
    assert (str(row["id"]), row["revision"], row["request"], row["state"]) == (done.finalisation_id, 1, 1, "REQUESTED")
    manifest = render_pb2.Manifest.FromString(desk.rt.blobs.read(row["manifest_sha256"]))
    assert (manifest.version, manifest.copy_id, manifest.revision, manifest.assembly) == (1, copy_id, 1, 1)
    assert manifest.source_sha256 == sha256(f"{copy_id} source 1") and manifest.exam.date == "2026-01-12"
    assert [(page.index, page.width) for page in manifest.pages] == [(0, 595.0), (1, 595.0)]
    [shown] = manifest.annotations
    assert (shown.id, shown.page_index, shown.content, shown.question_label) == (made.id, 1, "Clair", "2a")
    assert shown.score_delta_hundredths == -50
    assert [point.HasField("pressure") for point in shown.strokes[0].points] == [False, True]
    lines = [(q.id, q.depth, q.max_hundredths, q.score_hundredths, q.state) for q in manifest.questions]
    assert lines == [
        ("q1", 0, 800, 250, "SCORED"), ("q2", 0, 1200, 500, "SCORED"),
        ("q2a", 1, 500, 250, "SCORED"), ("q2b", 1, 700, 250, "SCORED"),
    ]  # fmt: skip
    assert (manifest.total_hundredths, manifest.max_hundredths) == (750, 2000)
    assert manifest.appreciation == "Très bien" and manifest.marker_code.startswith("M")
    assert desk.admin.username not in str(manifest) and desk.admin.user_id not in str(manifest)
    copy = desk.copy(copy_id)
    assert (copy["status"], copy["final_score"]) == ("GRADING_IN_PROGRESS", None)
    assert desk.sql("SELECT 1 AS n FROM copy_locks WHERE copy_id = %s", copy_id) == []
    assert "UNLOCK" not in desk.actions(copy_id)
    events = desk.sql("SELECT type, action, payload FROM outbox WHERE subject_id = %s ORDER BY source_seq", copy_id)
    assert [(e["type"], e["action"]) for e in events[-2:]] == [
        ("copy_status_changed", None),
        ("render_requested", None),
    ]
    asked = grading_pb2.RenderRequested.FromString(bytes(events[-1]["payload"]))
    assert (asked.revision, asked.request, asked.manifest_sha256) == (1, 1, row["manifest_sha256"])
    refs = desk.sql("SELECT owner_kind FROM blob_refs WHERE sha256 = %s", row["manifest_sha256"])
    assert [ref["owner_kind"] for ref in refs] == ["manifest"]


def test_not_attempted_parts_make_a_parent_not_attempted(desk: Desk) -> None:
    copy_id = desk.ready()
    token = locking.acquire(desk.rt, desk.admin, copy_id, Wish()).token
    scores = {"q1": 8, "q2a": "NT", "q2b": "NT"}
    scoring.write(desk.rt, desk.admin, copy_id, token, {"scores": scores}, lambda _: None)
    finalize.request(desk.rt, desk.admin, copy_id, token, forget)
    manifest = render_pb2.Manifest.FromString(desk.rt.blobs.read(desk.newest(copy_id)["manifest_sha256"]))
    assert [q.state for q in manifest.questions] == ["SCORED", *["NOT_ATTEMPTED"] * 3]
    assert not manifest.questions[1].HasField("score_hundredths") and manifest.total_hundredths == 800


def test_unfinished_copies_stay_locked(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    copy_id = desk.ready()
    token = locking.acquire(desk.rt, desk.admin, copy_id, Wish()).token
    scoring.write(desk.rt, desk.admin, copy_id, token, {"scores": {"q1": 1}}, lambda _: None)
    with caplog.at_level(logging.INFO, "grading"), pytest.raises(KorrigoError) as refused:
        finalize.request(desk.rt, desk.admin, copy_id, token, forget)
    assert (refused.value.reason, refused.value.metadata["missing"]) == ("SCORE_INCOMPLETE", ["q2a", "q2b"])
    told = [record for record in caplog.records if record.getMessage() == "Cannot calculate total score"]
    assert [(record.levelname, record.__dict__["copy_id"]) for record in told] == [("ERROR", copy_id)]
    assert desk.copy(copy_id)["status"] == "LOCKED"
    assert locking.heartbeat(desk.rt, desk.admin, copy_id, token).expires_in > 0


def test_an_orphaned_annotation_blocks(desk: Desk) -> None:
    exam_id = desk.exam()
    copy_id = desk.stage(exam_id)
    desk.assemble(copy_id, exam_id)
    token = marked(desk, copy_id)
    made, _ = annotating.create(desk.rt, desk.admin, copy_id, token, annotation())
    desk.assemble(copy_id, exam_id, assembly=2)
    with pytest.raises(KorrigoError) as refused:
        finalize.request(desk.rt, desk.admin, copy_id, token, forget)
    assert refused.value.reason == "ANNOTATION_ORPHANED" and refused.value.metadata["annotation_ids"] == [made.id]


def test_graded_once_whatever_is_told_twice(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    copy_id = requested(desk)
    with caplog.at_level(logging.INFO, "grading"):
        assert desk.rendered(copy_id, PDF, attempt=2) is Outcome.APPLIED
    assert f"Successfully finalized copy {copy_id} with score 7.5" in caplog.text
    copy = desk.copy(copy_id)
    assert (copy["status"], float(copy["final_score"]), copy["grading_error_message"]) == ("GRADED", 7.5, None)
    assert copy["graded_at"] is not None
    action, metadata = desk.acts(copy_id)[-1]
    pdf_sha256 = desk.newest(copy_id)["final_sha256"]
    assert (action, metadata) == (
        "FINALIZE",
        {
            "final_score": 7.5, "max_score": 20, "retries": 0, "success": True, "pdf_sha256": pdf_sha256,
            "pages": 3, "revision": 1, "duration_ms": 1200,
        },
    )  # fmt: skip
    caplog.clear()
    assert desk.rendered(copy_id, b"%PDF another") is Outcome.APPLIED
    assert desk.render_failed(copy_id, 3, is_final=True) is Outcome.APPLIED
    late = [record.levelname for record in caplog.records if record.getMessage() == "Copy already finalized"]
    assert late == ["WARNING"] * 2
    assert desk.copy(copy_id) == copy and desk.newest(copy_id)["final_sha256"] == pdf_sha256
    assert desk.actions(copy_id).count("FINALIZE") == 1
    assert desk.sql("SELECT owner_kind FROM blob_refs WHERE sha256 = %s", pdf_sha256)[0]["owner_kind"] == "final_pdf"
    assert refusal(lambda: locking.acquire(desk.rt, desk.admin, copy_id, Wish())) == (409, "COPY_ALREADY_GRADED")


def test_a_pdf_of_another_manifest_is_not_taken(desk: Desk) -> None:
    copy_id = requested(desk)
    desk.rendered(copy_id, PDF, manifest_sha256=sha256("another"))
    desk.rendered(copy_id, PDF, request=7)
    desk.rendered(copy_id, PDF, revision=2)
    assert desk.copy(copy_id)["status"] == "GRADING_IN_PROGRESS"
    desk.rendered(copy_id, PDF)
    assert desk.copy(copy_id)["status"] == "GRADED"


def test_failures_are_told_and_only_the_last_one_fails_the_copy(
    room: GradingRoom, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    copy_id = requested(desk)
    with caplog.at_level(logging.ERROR, "grading"):
        desk.render_failed(copy_id, 1, is_final=False)
        copy = desk.copy(copy_id)
        assert (copy["status"], copy["grading_retries"]) == ("GRADING_IN_PROGRESS", 1)
        assert copy["grading_error_message"] == "Failed to generate final PDF: TIMEOUT"
        desk.render_failed(copy_id, 2, is_final=False)
        assert not [record for record in caplog.records if record.levelno == logging.CRITICAL]
        desk.render_failed(copy_id, 3, is_final=True)
    copy = desk.copy(copy_id)
    assert (copy["status"], copy["grading_retries"]) == ("GRADING_FAILED", 3)
    told = [metadata for action, metadata in desk.acts(copy_id) if action == "FINALIZE"]
    assert [(m["success"], m["retries"], m["attempt"], m["error"], m["final_score"]) for m in told] == [
        (False, n, n, "TIMEOUT", None) for n in (1, 2, 3)
    ]
    [critical] = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert critical == f"Copy {copy_id} failed 3 times - manual intervention required"
    assert f"Async finalization failed for copy {copy_id} (attempt 2/3): Failed to generate final PDF" in caplog.text
    assert f"PDF generation failed for copy {copy_id} (attempt 1): TIMEOUT" in caplog.text
    assert "flatten_copy failed: TIMEOUT" in caplog.text
    text = room.anonymous().get("/metrics").text
    counted = 'grading_finalize_duration_seconds_count{retry_attempt="3+",status="failed"} '
    assert float(next(line for line in text.splitlines() if line.startswith(counted)).split()[1]) >= 1


def test_success_after_failures_counts_them(desk: Desk) -> None:
    copy_id = requested(desk)
    desk.render_failed(copy_id, 1, is_final=False)
    desk.rendered(copy_id, PDF, attempt=2)
    assert desk.copy(copy_id)["grading_error_message"] is None
    _, metadata = desk.acts(copy_id)[-1]
    assert (metadata["success"], metadata["retries"]) == (True, 1)


def test_an_admin_tries_again(desk: Desk) -> None:
    copy_id = requested(desk)
    assert refusal(lambda: finalize.retry(desk.rt, desk.admin, copy_id, forget)) == (409, "INVALID_STATUS")
    desk.render_failed(copy_id, 1, is_final=True)
    lead = desk.person("lead_marker")
    assert refusal(lambda: finalize.retry(desk.rt, lead, copy_id, forget)) == (403, "FORBIDDEN")
    finalize.retry(desk.rt, desk.admin, copy_id, forget)
    copy = desk.copy(copy_id)
    assert (copy["status"], copy["grading_retries"], copy["grading_error_message"]) == ("GRADING_IN_PROGRESS", 0, None)
    row = desk.newest(copy_id)
    assert (row["revision"], row["request"], row["state"]) == (1, 2, "REQUESTED")
    desk.rendered(copy_id, PDF, request=1)
    assert desk.copy(copy_id)["status"] == "GRADING_IN_PROGRESS", "what answers an old request is late"
    desk.rendered(copy_id, PDF)
    assert desk.copy(copy_id)["status"] == "GRADED"


def test_a_failed_copy_is_repaired_and_finalised(desk: Desk) -> None:
    copy_id = requested(desk)
    desk.render_failed(copy_id, 1, is_final=True)
    held = locking.acquire(desk.rt, desk.admin, copy_id, Wish())
    assert desk.copy(copy_id)["status"] == "LOCKED"
    annotating.create(desk.rt, desk.admin, copy_id, held.token, annotation(score_delta=1))
    finalize.request(desk.rt, desk.admin, copy_id, held.token, forget)
    desk.rendered(copy_id, PDF)
    copy = desk.copy(copy_id)
    assert (copy["status"], float(copy["final_score"]), copy["revision"]) == ("GRADED", 8.5, 1)
    assert desk.newest(copy_id)["request"] == 2


def test_reopened_and_graded_again(desk: Desk) -> None:
    copy_id = requested(desk)
    assert refusal(lambda: finalize.reopen(desk.rt, desk.admin, copy_id, "x")) == (409, "INVALID_STATUS")
    assert refusal(lambda: finalize.final_pdf(desk.rt, desk.admin, copy_id, None)) == (404, "FINAL_PDF_NOT_FOUND")
    desk.rendered(copy_id, PDF)
    first = finalize.final_pdf(desk.rt, desk.admin, copy_id, None)
    lead = desk.person("lead_marker")
    assert refusal(lambda: finalize.reopen(desk.rt, lead, copy_id, "x")) == (403, "FORBIDDEN")
    assert refusal(lambda: finalize.reopen(desk.rt, desk.admin, copy_id, " ")) == (422, "REASON_REQUIRED")
    after = finalize.reopen(desk.rt, desk.admin, copy_id, "Zoé appealed")
    assert (after.status, after.revision, after.final_score) == ("READY", 2, None)
    action, metadata = desk.acts(copy_id)[-1]
    assert (action, metadata["revision_from"], metadata["revision_to"]) == ("REOPEN", 1, 2)
    assert len(metadata["reason_commitment"]) == 64
    assert finalize.final_pdf(desk.rt, desk.admin, copy_id, None).final_sha256 == first.final_sha256
    token = marked(desk, copy_id, points=3)
    finalize.request(desk.rt, desk.admin, copy_id, token, forget)
    desk.rendered(copy_id, PDF + b"second")
    assert finalize.final_pdf(desk.rt, desk.admin, copy_id, None).final_sha256 != first.final_sha256
    assert finalize.final_pdf(desk.rt, desk.admin, copy_id, 1).final_sha256 == first.final_sha256
    told = [m for action, m in desk.acts(copy_id) if action == "FINALIZE"]
    assert [(m["revision"], m["final_score"]) for m in told] == [(1, 7.5), (2, 9)]


def test_two_successes_of_one_revision_are_refused_by_the_database(desk: Desk) -> None:
    copy_id = requested(desk)
    desk.rendered(copy_id, PDF)
    with pytest.raises(psycopg.errors.UniqueViolation):
        desk.sql(
            "INSERT INTO finalisations (id, copy_id, revision, request, state, manifest_sha256, score, max_score,"
            " marker_id, requested_by, final_sha256, final_size, pages) SELECT gen_random_uuid(), copy_id, revision, 9,"
            " state, manifest_sha256, score, max_score, marker_id, requested_by, final_sha256, final_size, pages"
            " FROM finalisations WHERE copy_id = %s",
            copy_id,
        )


# ------------------------------------------------------------------------------------------------------ HTTP
def test_the_whole_way_over_http(room: GradingRoom, desk: Desk) -> None:
    admin = room.log_in()
    copy_id = desk.ready()
    path = f"/api/copies/{copy_id}"
    token = {"X-Lock-Token": admin.post(f"{path}/lock", json={}).json()["token"]}
    admin.put(f"{path}/scores", json={"scores": dict.fromkeys(LEAVES, 2)}, headers={**token, "If-Match": "*"})
    key = {**token, "Idempotency-Key": "once-and-only"}
    answers = [admin.post(f"{path}/finalize", json={}, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["status"] == "GRADING_IN_PROGRESS"
    again = admin.post(f"{path}/finalize", headers=token)
    assert (again.status_code, again.json()["reason"]) == (409, "FINALIZE_IN_PROGRESS")
    assert admin.get(f"{path}/final-pdf").status_code == 404
    desk.rendered(copy_id, PDF)
    assert admin.get(path).json()["final_score"] == 6
    again = admin.post(f"{path}/finalize", headers=token)
    assert (again.status_code, again.json()["reason"]) == (409, "COPY_ALREADY_GRADED")
    late = admin.post(f"{path}/annotations", json=annotation(), headers=token)
    assert (late.status_code, late.json()["reason"]) == (409, "LOCK_MISSING")
    reopened = admin.post(f"{path}/reopen", json={"reason": "appeal"})
    assert (reopened.status_code, reopened.json()["revision"]) == (200, 2)
    assert admin.post(f"{path}/reopen", json={}).status_code == 422


def test_the_pdf_over_http(room: GradingRoom, desk: Desk) -> None:
    admin = room.log_in()
    copy_id = requested(desk)
    desk.rendered(copy_id, PDF)
    path = f"/api/copies/{copy_id}/final-pdf"
    whole = admin.get(path)
    tag = f'"{desk.newest(copy_id)["final_sha256"]}"'
    assert (whole.status_code, whole.content, whole.headers["ETag"]) == (200, PDF, tag)
    assert whole.headers["Content-Type"] == "application/pdf"
    assert whole.headers["Content-Disposition"].startswith("attachment;")
    cases: list[tuple[str, int, bytes]] = [
        ("bytes=10-29", 206, PDF[10:30]),
        ("bytes=-5", 206, PDF[-5:]),
        (f"bytes={len(PDF) - 3}-", 206, PDF[-3:]),
        ("bytes=0-0,5-6", 200, PDF),
    ]
    for header, status, content in cases:
        part = admin.get(path, headers={"Range": header})
        assert (part.status_code, part.content) == (status, content), header
    assert admin.get(path, headers={"Range": "bytes=10-29"}).headers["Content-Range"] == f"bytes 10-29/{len(PDF)}"
    outside = admin.get(path, headers={"Range": f"bytes={len(PDF)}-"})
    assert (outside.status_code, outside.headers["Content-Range"]) == (416, f"bytes */{len(PDF)}")
    assert outside.json()["reason"] == "RANGE_NOT_SATISFIABLE"
    assert admin.get(path, headers={"Range": "bytes=1-2", "If-Range": '"other"'}).status_code == 200
    assert admin.get(path, headers={"If-None-Match": tag}).status_code == 304
    head = admin.head(path)
    assert (head.headers["Content-Length"], head.content) == (str(len(PDF)), b"")
    for role, status in (("marker", 403), ("student", 403), ("auditor", 403), ("lead_marker", 403)):
        client, _ = room.user(f"reads-pdf-{role}", role)
        assert client.get(path).status_code == status
    assert admin.get(path, params={"revision": 2}).status_code == 404
    assert admin.get(path, params={"revision": 0}).status_code == 422


def test_locks_over_http(room: GradingRoom, desk: Desk) -> None:
    admin = room.log_in()
    copy_id = desk.ready()
    ada, ada_id = room.user("ada-locks", "lead_marker")
    lock = ada.post(f"/api/copies/{copy_id}/lock", json={"ttl_seconds": 120, "client_id": "t"})
    body: dict[str, Any] = lock.json()
    assert lock.status_code == 201 and body["owner"] == {"id": ada_id, "username": "ada-locks"}
    assert 118 <= body["expires_in"] <= 120 and body["status"] == "LOCKED"
    shown = admin.get(f"/api/copies/{copy_id}/lock").json()
    assert (shown["status"], shown["is_active_user"], shown["fence"]) == ("LOCKED", False, body["fence"])
    listed = admin.get("/api/locks").json()["items"]
    [mine] = [entry for entry in listed if entry["copy_id"] == copy_id]
    assert (mine["state"], mine["owner"]["username"]) == ("active", "ada-locks") and "token" not in mine
    assert body["token"] not in admin.get("/api/locks").text
    marker, _ = room.user("no-locks", "marker")
    assert marker.get("/api/locks").status_code == 403
    assert ada.request("DELETE", f"/api/locks/{copy_id}", json={"reason": "x"}).status_code == 403
    assert admin.request("DELETE", f"/api/locks/{copy_id}", json={}).status_code == 422
    assert admin.request("DELETE", f"/api/locks/{copy_id}", json={"reason": "gone home"}).status_code == 204
    assert admin.request("DELETE", f"/api/locks/{copy_id}", json={"reason": "again"}).status_code == 404
    beat = ada.post(f"/api/copies/{copy_id}/lock/heartbeat", headers={"X-Lock-Token": body["token"]})
    assert (beat.status_code, beat.json()["reason"]) == (404, "LOCK_MISSING")
    for wish in ({"ttl_seconds": 0}, {"ttl_seconds": 3601}, {"ttl_seconds": 1.5}, {"ttl_seconds": True},
                 {"client_id": "a b"}, {"client_id": ""}, {"odd": 1}):  # fmt: skip
        assert ada.post(f"/api/copies/{copy_id}/lock", json=wish).status_code == 422, wish
    assert ada.post(f"/api/copies/{copy_id}/lock").status_code == 201
