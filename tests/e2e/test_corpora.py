"""The shared corpora through the whole product: real-looking scans come out right, hostile files end with a reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy
import pypdfium2
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness.checker import conservation
from harness.client import Client, Json, Refused
from harness.corpora import CORPORA, needs_corpora, truth
from harness.instance import Instance
from harness.pdfs import Label, a4_scan

pytestmark = [*needs_corpora, pytest.mark.timeout(900)]

A4_FILES: dict[str, Any] = truth("scans/a4/truth.json").get("files", {})
BOMBS: dict[str, Any] = {
    name: told for name, told in truth("hard-pdfs/expected.json").get("files", {}).items() if name.startswith("bombs/")
}
QUESTIONS = {"q1": 20.0}
Thumb = NDArray[numpy.float64]


def thumbnail(picture: Image.Image) -> Thumb:
    """Reduce a page to what tells it from others: 48 x 68 grey values, centred and scaled."""
    grey = numpy.asarray(picture.convert("L").resize((48, 68)), dtype=numpy.float64)
    grey -= grey.mean()
    return grey / (numpy.linalg.norm(grey) or 1.0)


def _final(admin: Client, copy: Json, pages: int, folder: Path) -> None:
    lock = admin.lock(copy["id"])
    for index in {0, pages - 1}:
        admin.annotate(lock, page_index=index, content=f"Page{index}seen", type="COMMENT")
    admin.put_scores(lock, {"q1": 15.5}, "Bien")
    admin.finalize(lock)
    admin.wait_graded(copy["id"], seconds=180)
    path = folder / "final.pdf"
    path.write_bytes(admin.final_pdf(copy["id"]).content)
    with pypdfium2.PdfDocument(path) as document:
        assert len(document) > pages


@pytest.mark.parametrize("name", sorted(A4_FILES))
def test_every_a4_file_is_one_copy_and_gets_graded(admin: Client, name: str, tmp_path: Path) -> None:
    told = A4_FILES[name]
    exam = admin.create_exam(name, questions=QUESTIONS)
    scan = admin.wait_scan(admin.upload(exam["id"], CORPORA / "scans/a4" / name)["scan_id"], seconds=180)
    assert (scan["state"], scan["pages"], len(scan["copy_ids"])) == ("DONE", told["pages"], 1), scan
    assert list(conservation(scan, told["pages"])) == []
    copy = admin.wait_copy(scan["copy_ids"][0], ["READY"], seconds=20)
    sizes = [(page["width"], page["height"]) for page in copy["pages"]]
    assert [tuple(map(round, size)) for size in sizes] == [tuple(map(round, p["display_pt"])) for p in told["page"]]
    with pypdfium2.PdfDocument(CORPORA / "scans/a4" / name) as source:
        for page in copy["pages"][:: max(1, told["pages"] // 6)]:
            shown = thumbnail(Image.open(io.BytesIO(admin.page_image(page))))
            wanted = thumbnail(source[page["index"]].render(scale=1.0).to_pil())
            assert float((shown * wanted).sum()) > 0.9, f"page {page['index']} looks different"
    _final(admin, copy, told["pages"], tmp_path)


def _halves(path: Path) -> dict[tuple[int, str], Thumb]:
    found = {}
    with pypdfium2.PdfDocument(path) as source:
        for number, page in enumerate(source, start=1):
            picture = page.render(scale=0.5).to_pil()
            middle = picture.width // 2
            found[number, "left"] = thumbnail(picture.crop((0, 0, middle, picture.height)))
            found[number, "right"] = thumbnail(picture.crop((middle, 0, picture.width, picture.height)))
    return found


def test_clean_a3_gives_the_copies_and_the_order_of_the_truth(admin: Client, tmp_path: Path) -> None:
    told = truth("scans/a3/clean_12x1.truth.json")
    path = CORPORA / "scans/a3/clean_12x1.pdf"
    exam = admin.create_exam("clean", mode="A3_to_A4", pages_per_booklet=4, questions=QUESTIONS)
    scan = admin.wait_scan(admin.upload(exam["id"], path)["scan_id"], seconds=180)
    assert scan["state"] == "DONE", scan
    assert list(conservation(scan, told["conservation"]["half_pages"])) == []
    halves = _halves(path)
    keys = list(halves)
    matrix = numpy.stack([halves[key].ravel() for key in keys])
    wanted = [[(p["a3_page"], p["half"]) for p in copy["pages"]] for copy in told["copies"]]
    found, doubtful = [], 0
    for copy_id in scan["copy_ids"]:
        copy = admin.wait_copy(copy_id, ["READY"], seconds=30)
        order = []
        for page in copy["pages"]:
            likeness = matrix @ thumbnail(Image.open(io.BytesIO(admin.page_image(page)))).ravel()
            best = numpy.argsort(likeness)[::-1]
            doubtful += bool(likeness[best[0]] < 0.6)
            order.append(keys[int(best[0])])
        found.append(order)
    assert sorted(found) == sorted(wanted)
    assert doubtful == 0
    _final(admin, admin.copy(scan["copy_ids"][0]), 4, tmp_path)


def test_the_dirty_batch_loses_no_half_page(admin: Client) -> None:
    told = truth("scans/a3/dirty_11_students.truth.json")
    exam = admin.create_exam("dirty", mode="A3_to_A4", pages_per_booklet=4, questions=QUESTIONS)
    path = CORPORA / "scans/a3/dirty_11_students.pdf"
    scan = admin.wait_scan(admin.upload(exam["id"], path)["scan_id"], seconds=180)
    assert scan["state"] in ("DONE", "NEEDS_REVIEW"), scan
    assert scan["pages"] == told["a3_pages"]
    assert list(conservation(scan, told["conservation"]["half_pages"])) == []
    parts = scan["conservation"]
    placed = sum(len(admin.wait_copy(c, ["STAGING", "READY"])["pages"]) for c in scan["copy_ids"])
    # blank pages that stay in their copy are counted apart from the placed ones
    assert placed == parts["placed"] + parts["blank"]


def _send_bomb(admin: Client, exam_id: str, path: Path) -> tuple[str, str]:
    """Return ("refused", reason) or ("scan", id)."""
    try:
        return "scan", admin.upload(exam_id, path)["scan_id"]
    except Refused as refused:
        return "refused", refused.reason if 400 <= refused.status < 500 else f"HTTP {refused.status}"


def _judge(told: Json, ended: str, reason: str, pages: int | None) -> str | None:
    allowed = {text.upper() for text in told["reasons_if_rejected"]}
    if "RESOURCE_LIMIT" in allowed or told["expected"].startswith("accepted_or"):
        allowed.add("TIMEOUT")
    if ended == "accepted":
        if told["expected"].startswith("rejected"):
            return f"accepted, but {told['expected']}"
        if told["pages"] is not None and pages != told["pages"]:
            return f"{pages} pages of {told['pages']}"
        return None
    if told["expected"] == "accepted":
        return f"refused with {reason}"
    return None if reason in allowed else f"refused with {reason}, not one of {sorted(allowed)}"


def test_bombs_end_with_a_reason_and_no_worker_dies(instance: Instance, admin: Client, tmp_path: Path) -> None:
    workers = sorted(instance.workers())
    assert workers
    exam = admin.create_exam("bombs", auto_validate=False, questions=QUESTIONS)
    sent = {name: _send_bomb(admin, exam["id"], CORPORA / "hard-pdfs" / name) for name in sorted(BOMBS)}
    good = admin.upload(exam["id"], a4_scan(tmp_path / "good.pdf", [Label(200, 1, 1)]))
    wrong: dict[str, str] = {}
    logged: dict[str, str] = {}
    for name, (kind, value) in sent.items():
        if kind == "refused":
            verdict = _judge(BOMBS[name], "refused", value, None)
        else:
            scan = admin.wait_scan(value, seconds=600)
            if scan["state"] in ("FAILED", "REJECTED"):
                reason = scan["error"]["reason"]
                assert scan["error"]["message"] and scan["copy_ids"] is not None
                logged[value] = reason
                verdict = _judge(BOMBS[name], "refused", reason, None)
            else:
                verdict = _judge(BOMBS[name], "accepted", "", scan["pages"])
        if verdict:
            wrong[name] = verdict
    assert wrong == {}
    assert admin.wait_scan(good["scan_id"])["state"] == "DONE"
    assert sorted(instance.workers()) == workers, "a worker died"
    lines = [str(line) for line in instance.log_lines() if line.get("level") in ("WARNING", "ERROR")]
    silent = [s for s, reason in logged.items() if not any(s in line and reason in line for line in lines)]
    assert silent == [], "a failed scan whose reason is not in the log"
