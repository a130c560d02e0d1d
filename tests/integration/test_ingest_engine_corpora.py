"""The import engine on the corpora: real batches of scans, and everything hostile or odd.

Called directly where the question is what comes out, and in the real sandbox over the whole corpora of hostile and
odd PDFs, where the question is also that nothing hangs or dies.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from harness.corpora import CORPORA, needs_corpora, truth
from harness.ingest_engine import (
    Json,
    cut,
    difference,
    image_hashes,
    label_of,
    picture_all,
    plan_of,
    qpdf_check,
    rendered,
    requests,
    require_sound,
)
from harness.pdfs import Label, a3_booklets
from korrigo_ingest.domain.plan import Mode
from korrigo_ingest.engine.cutting import cut_copies
from korrigo_ingest.engine.inspection import inspect_pdf
from korrigo_kit.sandbox import EngineError, Limits, Sandbox

# -- scans


class TestScans:
    pytestmark = needs_corpora

    def test_the_clean_batch_has_the_right_copies_in_the_right_order(self, tmp_path: Path) -> None:
        source = CORPORA / "scans/a3/clean_12x1.pdf"
        expected = truth("scans/a3/clean_12x1.truth.json")
        inspected = inspect_pdf(source.parent, source=source.name)
        plan = plan_of(inspected, Mode.A3_TO_A4, 4)
        copies = cut_copies(tmp_path, source=str(source), copies=requests(plan), clean=inspected["clean"])
        pictures = picture_all(tmp_path, str(source), [page for copy in requests(plan) for page in copy])
        assert len(copies) == len(expected["copies"])
        foreign: set[str] = set()
        shown = iter(pictures)
        sheets = [rendered(source, index) for index in range(inspected["page_count"])]
        for copy, wanted in zip(copies, expected["copies"], strict=True):
            path = tmp_path / copy["file"]
            require_sound(path)
            hashes = image_hashes(path)
            assert len(hashes) == 2
            assert not hashes & foreign
            foreign |= hashes
            for index, page in enumerate(wanted["pages"]):
                sheet = sheets[page["a3_page"] - 1]
                middle = sheet.width // 2
                half = sheet.crop((0, 0, middle, sheet.height) if page["half"] == "left" else (middle, 0, *sheet.size))
                picture = next(shown)
                assert difference(rendered(path, index), half) < 3, (wanted["student"], index)
                assert difference(Image.open(tmp_path / picture["file"]), half) < 3, (wanted["student"], index)
                assert picture["is_blank"] == page["blank"]

    def test_the_dirty_batch_keeps_every_half_page_and_calls_no_writing_blank(self, tmp_path: Path) -> None:
        source = CORPORA / "scans/a3/dirty_11_students.pdf"
        expected = truth("scans/a3/dirty_11_students.truth.json")
        inspected = inspect_pdf(source.parent, source=source.name)
        plan = plan_of(inspected, Mode.A3_TO_A4, 4)
        copies = cut_copies(tmp_path, source=str(source), copies=requests(plan), clean=inspected["clean"])
        assert sum(copy["page_count"] for copy in copies) == expected["conservation"]["half_pages"]
        halves = [half for copy in plan.copies for half in copy]
        pictures = picture_all(tmp_path, str(source), [page for copy in requests(plan) for page in copy])
        assert all(picture["ok"] for picture in pictures)
        told = {
            (half.page_index + 1, half.side.value)
            for half, picture in zip(halves, pictures, strict=True)
            if picture["is_blank"]
        }
        really = {(half["a3_page"], half["half"]) for half in expected["half_pages"] if half["blank"]}
        assert told <= really
        assert len(told) >= len(really) - 1

    @pytest.mark.parametrize("name", sorted(truth("scans/a4/truth.json").get("files", {})))
    def test_a_scan_of_one_student(self, name: str, tmp_path: Path) -> None:
        source = CORPORA / "scans/a4" / name
        pages = truth("scans/a4/truth.json")["files"][name]["page"]
        inspected = inspect_pdf(source.parent, source=name)
        assert inspected["page_count"] == len(pages)
        for found, page in zip(inspected["pages"], pages, strict=True):
            assert [found["width"], found["height"]] == pytest.approx(page["display_pt"], abs=0.1)
        shutil.copy(source, tmp_path / "source.pdf")
        _, [copy] = cut(tmp_path, "source.pdf", Mode.A4_SINGLE, 0)
        assert copy["verbatim"]
        require_sound(tmp_path / copy["file"])
        _, parts = cut(tmp_path, "source.pdf", Mode.A4_SINGLE, 1)
        pictures = picture_all(tmp_path, "source.pdf", [{"index": index} for index in range(len(pages))])
        seen: set[str] = set()
        for index, (page, part, picture) in enumerate(zip(pages, parts, pictures, strict=True)):
            require_sound(tmp_path / part["file"])
            original = rendered(source, index)
            assert difference(rendered(tmp_path / part["file"], 0), original) < 1
            assert difference(Image.open(tmp_path / picture["file"]), original) < 4
            assert picture["verbatim"] == _may_be_extracted(page, inspected["pages"][index])
            hashes = image_hashes(tmp_path / part["file"])
            assert not hashes & seen
            seen |= hashes


def _may_be_extracted(page: Json, found: Json) -> bool:
    is_plain = page.get("filter") == "DCTDecode" and page.get("colour", "rgb") in {"rgb", "gray"}
    return bool(page.get("whole_page_is_one_image")) and is_plain and not found["rotate"]


ENGINE = "korrigo_ingest.engine"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox([f"{ENGINE}.{name}" for name in ("inspection", "cutting", "pictures", "scaling")]) as made:
        yield made


def limits(pages: int) -> Limits:
    return Limits(wall_seconds=min(2 + pages, 120), cpu_seconds=120)


def outcome(sandbox: Sandbox, source: Path, folder: Path) -> tuple[str, int | str]:
    """Run the whole import of one file as one copy, under the limits of the product."""
    shutil.copyfile(source, folder / "source.pdf")
    try:
        found = sandbox.run(f"{ENGINE}.inspection:inspect_pdf", {}, workdir=folder, limits=limits(20))
        count: int = found["page_count"]
        pages = [{"index": index} for index in range(count)]
        arguments = {"copies": [pages], "clean": found["clean"]}
        [copy] = sandbox.run(f"{ENGINE}.cutting:cut_copies", arguments, workdir=folder, limits=limits(count))
        assert copy["page_count"] == count
        made: list[Json] = []
        for start in range(0, count, 20):
            arguments = {"pages": pages[start : start + 20], "prefix": f"p{start}"}
            size = limits(len(pages[start : start + 20]))
            made += sandbox.run(f"{ENGINE}.pictures:page_pictures", arguments, workdir=folder, limits=size)
    except EngineError as error:
        # a page that cannot be drawn in its time, alone, is over the limits (flows name it so)
        return "rejected", "resource_limit" if error.reason == "TIMEOUT" else error.reason.lower()
    assert len(made) == count
    failures = [picture for picture in made if not picture["ok"]]
    if failures:
        return "rejected", failures[0]["reason"].lower()
    _require_tolerable(folder / copy["file"])
    return "accepted", count


# What qpdf says of pictures that it cannot decode and of content with errors: kept as they came, on purpose.
_TOLERATED = ("error decoding stream data", "re-processed without filtering", "page object", "content stream")


def _require_tolerable(path: Path) -> None:
    code, text = qpdf_check(path)
    warnings = [line for line in text.splitlines() if "WARNING" in line]
    assert code in (0, 3), text
    assert all(any(known in line for known in _TOLERATED) for line in warnings), text


HARD = truth("hard-pdfs/expected.json").get("files", {})


class TestHardPdfs:
    pytestmark = needs_corpora

    @pytest.mark.parametrize("name", sorted(HARD))
    def test_every_file_ends_as_it_may(self, name: str, sandbox: Sandbox, tmp_path: Path) -> None:
        expected = HARD[name]
        verdict, what = outcome(sandbox, CORPORA / "hard-pdfs" / name, tmp_path)
        counts = {expected["pages"], *(expected["pages_by_engine"] or {}).values()}
        if verdict == "accepted":
            assert not expected["expected"].startswith("rejected:"), "it must be refused"
            assert what in counts
        else:
            assert expected["expected"] != "accepted", f"it must be taken, and was refused: {what}"
            assert what in expected["reasons_if_rejected"]

    def test_a_good_file_is_served_after_a_bomb(self, sandbox: Sandbox, tmp_path: Path) -> None:
        for name, verdict in (("bombs/micro_tiling.pdf", "rejected"), ("bombs/witness_good.pdf", "accepted")):
            folder = tmp_path / verdict
            folder.mkdir()
            assert outcome(sandbox, CORPORA / "hard-pdfs" / name, folder)[0] == verdict


def test_an_upload_makes_the_same_in_the_sandbox(sandbox: Sandbox, tmp_path: Path) -> None:
    a3_booklets(tmp_path / "source.pdf", document=4, booklets=1)
    plan, outside = cut(tmp_path, "source.pdf", Mode.A3_TO_A4, 4)
    arguments = {"copies": requests(plan), "clean": True, "prefix": "inside"}
    inside = sandbox.run(f"{ENGINE}.cutting:cut_copies", arguments, workdir=tmp_path, limits=limits(2))
    assert [copy["sha256"] for copy in inside] == [copy["sha256"] for copy in outside]
    pages = {"pages": requests(plan)[0], "prefix": "picture"}
    made = sandbox.run(f"{ENGINE}.pictures:page_pictures", pages, workdir=tmp_path, limits=limits(2))
    assert [label_of(tmp_path / picture["file"]) for picture in made] == [
        str(Label(4, 1, page)) for page in (1, 2, 3, 4)
    ]
    small = sandbox.run(
        f"{ENGINE}.scaling:scaled", {"picture": made[0]["file"], "width": 64}, workdir=tmp_path, limits=limits(1)
    )
    assert Image.open(io.BytesIO((tmp_path / small["file"]).read_bytes())).width == 64
