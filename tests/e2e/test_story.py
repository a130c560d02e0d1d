"""The whole main story of the contract, in both modes: from a scan to a verified marked PDF."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image

from harness.checker import check, conservation, pdf_text
from harness.client import Client, Json, Refused, etag_of, uuid7
from harness.instance import Instance
from harness.instances import MakeUser
from harness.ledger import Ledger
from harness.pdfs import Label, a3_booklets, a4_booklets, a4_scan, read_label
from harness.processes import wait_for
from harness.story import Marker

QUESTIONS = {"q1": 8.0, "q2": 12.0}


def _labels(client: Client, copy: Json) -> list[Label | None]:
    pictures = [Image.open(io.BytesIO(client.page_image(page))) for page in copy["pages"]]
    return [read_label(picture) for picture in pictures]


def _import(client: Client, exam: Json, path: Path, *, half_pages: int, copies: int) -> list[Json]:
    answer = client.upload(exam["id"], path)
    assert answer["copy_ids"] == []
    scan = client.wait_scan(answer["scan_id"])
    assert (scan["state"], scan["error"]) == ("DONE", None)
    assert list(conservation(scan, half_pages)) == []
    assert len(scan["copy_ids"]) == copies
    return [client.wait_copy(copy_id, ["STAGING", "READY"]) for copy_id in scan["copy_ids"]]


def test_from_scan_to_final_pdf(instance: Instance, admin: Client, make_user: MakeUser, tmp_path: Path) -> None:
    marker = make_user("marker")
    exam = admin.create_exam("Story", questions=QUESTIONS, auto_validate=False, corrector_ids=[marker.user["id"]])
    path = a4_scan(tmp_path / "one.pdf", [Label(1, 1, page) for page in (1, 2, 3)])
    sent = admin.send(
        "POST",
        "/api/scans",
        params={"exam_id": exam["id"]},
        files={"file": ("copie de Zoé.pdf", path.read_bytes(), "application/pdf")},
    )
    assert sent.status_code == 202
    assert sent.headers["Location"].endswith(f"/api/scans/{sent.json()['scan_id']}")
    assert {"scan_id", "job_id", "copy_ids"} <= set(sent.json())
    scan = admin.wait_scan(sent.json()["scan_id"])
    assert (scan["state"], scan["pages"], len(scan["copy_ids"])) == ("DONE", 3, 1)
    copy_id = scan["copy_ids"][0]
    staged = wait_for("the pages", lambda: (found := admin.copy(copy_id))["pages"] and found, seconds=10)
    assert staged["status"] == "STAGING"
    assert [page["index"] for page in staged["pages"]] == [0, 1, 2]
    assert [(round(p["width"]), round(p["height"])) for p in staged["pages"]] == [(595, 842)] * 3
    assert _labels(admin, staged) == [Label(1, 1, page) for page in (1, 2, 3)]

    with pytest.raises(Refused) as refused:
        marker.lock(copy_id)
    assert refused.value.status == 409
    assert admin.validate(copy_id)["status"] == "READY"
    ready = marker.wait_copy(copy_id, ["READY"])
    assert (ready["grading_retries"], ready["final_score"]) == (0, None)
    with pytest.raises(Refused) as refused:
        admin.final_pdf(copy_id)
    assert refused.value.status == 404

    lock = marker.lock(copy_id)
    assert marker.copy(copy_id)["status"] == "LOCKED"
    first = marker.annotate(lock, content="Clear √2 ≤ 3", page_index=1, type="COMMENT", score_delta=None)
    assert (first["page_index"], first["version"], first["type"]) == (1, 1, "COMMENT")
    assert first["page_id"] == ready["pages"][1]["page_id"]
    by_page_id = marker.annotate(lock, page_index=None, page_id=ready["pages"][2]["page_id"], content="Doomed9")
    assert by_page_id["page_index"] == 2
    _patch_and_delete(marker, lock.headers, copy_id, first, by_page_id)
    _score(marker, lock.headers, copy_id)

    accepted = marker.finalize(lock)
    assert accepted["status"] == "GRADING_IN_PROGRESS" and accepted["job_id"]
    graded = marker.wait_graded(copy_id)
    assert graded["final_score"] == 18.25
    _final_pdf(admin, copy_id, path, tmp_path)
    with pytest.raises(Refused) as refused:
        marker.final_pdf(copy_id)
    assert refused.value.status == 403
    with pytest.raises(Refused) as refused:
        admin.lock(copy_id)
    assert refused.value.status == 409
    _audit(admin, copy_id, graded, marker.user["id"])
    verified = instance.cli("audit", "verify", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _patch_and_delete(marker: Client, token: dict[str, str], copy_id: str, first: Json, doomed: Json) -> None:
    path = f"/api/copies/{copy_id}/annotations/{first['id']}"
    with pytest.raises(Refused) as refused:
        marker.json("PATCH", path, json={"content": "lost"}, headers=token)
    assert refused.value.status == 428
    changed = marker.send(
        "PATCH", path, json={"content": "Cleared7", "score_delta": 0.5}, headers=token | {"If-Match": etag_of(first)}
    )
    assert (changed.json()["version"], changed.json()["content"]) == (2, "Cleared7")
    assert changed.headers["ETag"] != etag_of(first)
    with pytest.raises(Refused) as refused:
        marker.json("PATCH", path, json={"content": "stale"}, headers=token | {"If-Match": etag_of(first)})
    assert (refused.value.status, refused.value.reason) == (412, "VERSION_MISMATCH")
    assert "Cleared7" in str(refused.value.problem)
    gone = f"/api/copies/{copy_id}/annotations/{doomed['id']}"
    with pytest.raises(Refused) as refused:
        marker.send("DELETE", gone, headers=token)
    assert refused.value.status == 428
    assert marker.send("DELETE", gone, headers=token | {"If-Match": etag_of(doomed)}).status_code == 204
    assert [a["content"] for a in marker.annotations(copy_id)] == ["Cleared7"]


def _score(marker: Client, token: dict[str, str], copy_id: str) -> None:
    path = f"/api/copies/{copy_id}/scores"
    empty = marker.send("GET", path)
    assert empty.headers["ETag"] and empty.json()["complete"] is False
    with pytest.raises(Refused) as refused:
        marker.json("PUT", path, json={"scores": {"q1": 1}}, headers=token)
    assert refused.value.status == 428
    part = marker.json("PUT", path, json={"scores": {"q1": 7.75}}, headers=token | {"If-Match": empty.headers["ETag"]})
    assert (part["complete"], part["scores"]["q1"]) == (False, 7.75)
    with pytest.raises(Refused) as refused:
        marker.json("POST", f"/api/copies/{copy_id}/finalize", json={}, headers=token)
    assert (refused.value.status, refused.value.reason) == (409, "SCORE_INCOMPLETE")
    whole = marker.json(
        "PUT", path, json={"scores": {"q2": 10}, "appreciation": "Très bien"}, headers=token | {"If-Match": "*"}
    )
    # 7.75 + 10, and half a point of an annotation that belongs to no question: a bonus (domain.md 1.6)
    assert (whole["total"], whole["max_score"], whole["complete"]) == (18.25, 20, True)
    assert [(q["id"], q["max"], q["score"]) for q in whole["questions"]] == [("q1", 8, 7.75), ("q2", 12, 10)]


def _final_pdf(admin: Client, copy_id: str, source: Path, folder: Path) -> None:
    whole = admin.final_pdf(copy_id)
    assert whole.headers["Content-Type"] == "application/pdf"
    etag = whole.headers["ETag"]
    assert etag.strip('"') == hashlib.sha256(whole.content).hexdigest()
    assert whole.content.startswith(source.read_bytes())
    part = admin.final_pdf(copy_id, Range="bytes=10-29")
    assert (part.status_code, part.content) == (206, whole.content[10:30])
    assert part.headers["Content-Range"] == f"bytes 10-29/{len(whole.content)}"
    assert admin.final_pdf(copy_id, Range="bytes=-5").content == whole.content[-5:]
    assert admin.final_pdf(copy_id, Range=f"bytes={len(whole.content)}-").status_code == 416
    assert admin.final_pdf(copy_id, **{"If-None-Match": etag}).status_code == 304
    head = admin.send("HEAD", f"/api/copies/{copy_id}/final-pdf")
    assert int(head.headers["Content-Length"]) == len(whole.content) and not head.content
    saved = folder / "final.pdf"
    saved.write_bytes(whole.content)
    with pypdfium2.PdfDocument(saved) as document:
        assert len(document) > 3
        pictures = [document[i].render(scale=1.0).to_pil() for i in range(3)]
    assert [read_label(picture) for picture in pictures] == [Label(1, 1, page) for page in (1, 2, 3)]
    text = pdf_text(saved)
    assert "Cleared7" in text and "Doomed9" not in text
    assert "18.25" in text or "18,25" in text
    assert "Très bien" in text


def _audit(admin: Client, copy_id: str, graded: Json, marker_id: str) -> None:
    events = admin.wait_audit(copy_id, "FINALIZE")
    actions = [event["action"] for event in events if event["action"] != "SCORE"]
    assert actions == [
        "IMPORT", "VALIDATE", "LOCK", "CREATE_ANN", "CREATE_ANN", "UPDATE_ANN", "DELETE_ANN", "FINALIZE",
    ]  # fmt: skip
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    for event in events:
        assert {"actor_id", "timestamp", "created_at", "metadata", "request_id", "leaf_hash"} <= set(event)
        assert event["actor_id"] and event["leaf_hash"]
    final = events[-1]["metadata"]
    assert final["success"] is True and final["final_score"] == graded["final_score"]
    assert {e["actor_id"] for e in events if e["action"] in ("LOCK", "CREATE_ANN", "UPDATE_ANN")} == {marker_id}
    assert events[0]["metadata"]["filename"].startswith("upload-") and events[0]["metadata"]["pages"] == 3
    told = str([event["metadata"] for event in events])
    assert "Cleared7" not in told and "Zo" not in told, "what a person typed entered an event"


def test_booklets_of_n_pages_and_a_remainder(admin: Client, tmp_path: Path) -> None:
    exam = admin.create_exam("Chunks", pages_per_booklet=2, auto_validate=False)
    copies = _import(
        admin, exam, a4_booklets(tmp_path / "c.pdf", document=2, booklets=3, pages=2), half_pages=6, copies=3
    )
    found = [_labels(admin, copy) for copy in copies]
    assert sorted(found, key=str) == [[Label(2, b, 1), Label(2, b, 2)] for b in (1, 2, 3)]
    odd = admin.upload(exam["id"], a4_scan(tmp_path / "odd.pdf", [Label(3, 1, p) for p in (1, 2, 3)]))
    scan = admin.wait_scan(odd["scan_id"])
    assert scan["state"] == "NEEDS_REVIEW" and scan["anomalies"]
    assert list(conservation(scan, 3)) == []


def test_folded_a3_comes_out_in_reading_order(admin: Client, tmp_path: Path) -> None:
    exam = admin.create_exam("Folded", mode="A3_to_A4", pages_per_booklet=4, auto_validate=True)
    copies = _import(admin, exam, a3_booklets(tmp_path / "a3.pdf", document=4, booklets=3), half_pages=12, copies=3)
    for copy in copies:
        ready = admin.wait_copy(copy["id"], ["READY"], seconds=10)
        labels = _labels(admin, ready)
        booklet = labels[0].booklet if labels[0] else 0
        assert labels == [Label(4, booklet, page) for page in (1, 2, 3, 4)]
        assert [(round(p["width"]), round(p["height"])) for p in ready["pages"]] == [(595, 842)] * 4


def test_auto_validate_makes_ready_without_a_person(admin: Client, tmp_path: Path) -> None:
    exam = admin.create_exam("Auto", auto_validate=True)
    copies = _import(admin, exam, a4_scan(tmp_path / "a.pdf", [Label(5, 1, 1)]), half_pages=1, copies=1)
    admin.wait_copy(copies[0]["id"], ["READY"], seconds=10)
    actions = [event["action"] for event in admin.wait_audit(copies[0]["id"], "VALIDATE")]
    assert actions == ["IMPORT", "VALIDATE"]


def test_the_same_bytes_again_are_kept_for_a_person(admin: Client, tmp_path: Path) -> None:
    exam, other = admin.create_exam("Twice"), admin.create_exam("Elsewhere")
    path = a4_scan(tmp_path / "a.pdf", [Label(6, 1, 1)])
    first = admin.wait_scan(admin.upload(exam["id"], path)["scan_id"])
    again = admin.wait_scan(admin.upload(exam["id"], path)["scan_id"])
    assert "DUPLICATE_FILE" in str(again["anomalies"]) and first["id"] in str(again["anomalies"])
    elsewhere = admin.wait_scan(admin.upload(other["id"], path)["scan_id"])
    assert (elsewhere["state"], elsewhere["anomalies"]) == ("DONE", [])


def test_repeated_requests_do_it_once(admin: Client, tmp_path: Path) -> None:
    exam = admin.create_exam("Repeats", questions=QUESTIONS)
    path = a4_scan(tmp_path / "a.pdf", [Label(7, 1, 1)])
    key = {"Idempotency-Key": uuid7()}
    request = {"params": {"exam_id": exam["id"]}, "headers": key}
    answers = [
        admin.json("POST", "/api/scans", files={"file": ("a.pdf", path.read_bytes(), "application/pdf")}, **request)
        for _ in range(2)
    ]
    assert answers[0]["scan_id"] == answers[1]["scan_id"]
    copy_id = admin.wait_scan(answers[0]["scan_id"])["copy_ids"][0]
    admin.wait_copy(copy_id, ["READY"])
    lock = admin.lock(copy_id)
    assert admin.lock(copy_id).token == lock.token
    wish = {"id": uuid7(), "content": "once"}
    assert [admin.annotate(lock, **wish)["id"] for _ in range(2)] == [wish["id"]] * 2
    assert len(admin.annotations(copy_id)) == 1
    admin.put_scores(lock, {"q1": 1, "q2": 2}, "ok")
    body = {"headers": lock.headers | {"Idempotency-Key": uuid7()}, "json": {}}
    jobs = [admin.json("POST", f"/api/copies/{copy_id}/finalize", **body)["job_id"] for _ in range(2)]
    assert jobs[0] == jobs[1]
    admin.wait_graded(copy_id)
    created = [e for e in admin.wait_audit(copy_id, "FINALIZE") if e["action"] in ("CREATE_ANN", "FINALIZE")]
    assert [event["action"] for event in created] == ["CREATE_ANN", "FINALIZE"]


def test_a_ledger_of_several_copies_holds(instance: Instance, admin: Client, tmp_path: Path) -> None:
    ledger, questions = Ledger(), QUESTIONS
    plans: Sequence[tuple[str, int, Path, int, int, bool]] = [
        ("A4_single", 0, a4_scan(tmp_path / "1.pdf", [Label(11, 1, p) for p in (1, 2)]), 2, 1, False),
        ("A4_single", 2, a4_booklets(tmp_path / "2.pdf", document=12, booklets=2, pages=2), 4, 2, False),
        ("A3_to_A4", 4, a3_booklets(tmp_path / "3.pdf", document=13, booklets=2), 4, 2, True),
    ]
    for mode, size, path, pages, copies, is_a3 in plans:
        exam = admin.create_exam(path.name, mode=mode, pages_per_booklet=size, questions=questions)
        ledger.uploaded(admin.upload(exam["id"], path), exam["id"], path, pages=pages, copies=copies, is_a3=is_a3)
    marker = Marker(admin, ledger, random.Random(20260112))
    copy_ids = [c for u in ledger.uploads for c in admin.wait_scan(u.scan_id)["copy_ids"]]
    for copy_id in copy_ids:
        marker.mark(admin.wait_copy(copy_id, ["READY"]), questions)
    for copy_id in copy_ids:
        ledger.graded(admin.wait_graded(copy_id))
    assert check(ledger, admin, instance, expected_copies=5) == []
    # the checker itself must see a loss: the ledger is made to claim more than the system was told
    entry = ledger.copies[copy_ids[0]]
    lost = ledger.annotating(entry.copy_id, uuid7(), "neverwas")
    lost.is_acked, lost.version = True, 1
    entry.scores = {"q1": 0.25, "q2": 20.25}
    told = "\n".join(check(ledger, admin, instance, expected_copies=6))
    for sentence in ("5 copies exist, 6", "is lost", "20.5 was acknowledged", "lacks 'neverwas'", "CREATE_ANN"):
        assert sentence in told
