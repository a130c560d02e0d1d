"""The final PDF: all that was written and decided is in it, and what must not be built is refused.

Over small PDFs made here; `test_render_engine_sources.py` is about every kind of source.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pikepdf
import pytest

from harness.final_pdfs import (
    BOX,
    KINDS,
    TEXTS,
    annotation,
    assert_texts_found,
    build,
    manifest_of,
    page_sizes,
    pixels,
    question,
    running_text_of,
    sha256,
    small_pdf,
    some_annotations,
    text_of,
)
from korrigo_kit.sandbox import EngineError, Limits, Sandbox
from korrigo_render.engine.append import append
from korrigo_render.engine.verify import verify

# -- texts


def test_no_text_is_cut_off_however_long_or_crowded(tmp_path: Path) -> None:
    source = small_pdf(tmp_path / "s.pdf")
    annotations = [
        annotation(
            n,
            0,
            KINDS[n % 5],
            (0.1 + 0.02 * (n % 40), 0.02 * (n % 45), 0.1, 0.02),
            f"n°{n} " + TEXTS[n % 4] * (1 + n % 9),
        )
        for n in range(70)
    ]
    annotations.append(annotation(99, 0, "COMMENT", (0.4, 0.4, 0.1, 0.1), "mot" * 3000 + " fin"))
    result = build(tmp_path / "w", source, annotations)
    final = tmp_path / "w" / "final.pdf"
    assert result["moved_comments"] > 0
    assert result["score_pages"] > 2
    assert_texts_found(final, annotations)
    words = subprocess.run(["pdftotext", "-bbox", final, "-"], capture_output=True, check=True).stdout.decode()
    sizes = page_sizes(final)
    page = -1
    for line in words.splitlines():
        page += "<page " in line
        if box := re.search(r'xMin="([-\d.]+)" yMin="([-\d.]+)" xMax="([-\d.]+)" yMax="([-\d.]+)"', line):
            x0, y0, x1, y1 = map(float, box.groups())
            assert x0 >= 0, line
            assert y0 >= 0, line
            assert x1 <= sizes[page][0], line
            assert y1 <= sizes[page][1], line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box", [(0, 0, 0.01, 0.01), (0.99, 0.99, 0.01, 0.01), (0, 0, 1, 1), (0.999, 0, 0.001, 1.0)])
def test_texts_at_the_edges_stay_on_the_page(tmp_path: Path, kind: str, box: tuple[float, ...]) -> None:
    content = "Où ?" if kind == "STAMP" else TEXTS[1] + TEXTS[3]
    build(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [annotation(1, 0, kind, box, content)])
    assert_texts_found(tmp_path / "w" / "final.pdf", [{"content": content}])


@pytest.mark.parametrize("size", [(30, 20), (120, 160), (2000, 3000), (842, 1191), (14000, 300)])
def test_pages_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    source = small_pdf(tmp_path / "s.pdf", media=(0, 0, *size), content=b"")
    annotations = [
        annotation(1, 0, "COMMENT", (0.2, 0.2, 0.3, 0.2), TEXTS[1]),
        annotation(2, 0, "TEXT", (0.2, 0.6, 0.3, 0.1), TEXTS[2]),
    ]
    build(tmp_path / "w", source, annotations)
    assert_texts_found(tmp_path / "w" / "final.pdf", annotations)


def test_marks_are_written_beside_their_annotation(tmp_path: Path) -> None:
    annotations = [
        annotation(1, 0, "ERROR", (0.1, 0.1, 0.1, 0.1), "", score_delta_hundredths=-100, question_label="Ex 2"),
        annotation(2, 0, "BONUS", (0.1, 0.5, 0.1, 0.1), "Astucieux", score_delta_hundredths=50),
    ]
    build(tmp_path / "fr", small_pdf(tmp_path / "s.pdf"), annotations)
    found = text_of(tmp_path / "fr" / "final.pdf", "-l", "1")
    assert "−1(Ex2)" in found
    assert "+0,5Astucieux" in found
    build(tmp_path / "en", small_pdf(tmp_path / "s.pdf"), annotations, language="en")
    assert "+0.5Astucieux" in text_of(tmp_path / "en" / "final.pdf", "-l", "1")


def test_the_highlight_lets_the_script_show_through(tmp_path: Path) -> None:
    source = small_pdf(tmp_path / "s.pdf", content=b"0 g 100 500 50 50 re f\n")
    build(tmp_path / "w", source, [annotation(1, 0, "HIGHLIGHT", (0.1, 0.3, 0.4, 0.2))])
    picture = pixels(tmp_path / "w" / "final.pdf")
    assert picture[842 - 525, 125].max() < 10, "black writing under a highlight must stay black"
    red, green, blue = (int(v) for v in picture[842 - 525, 220])
    assert red > 240
    assert green > 220
    assert blue < 190


# -- the score page


def test_the_score_page_says_all_that_was_decided(tmp_path: Path) -> None:
    source = small_pdf(tmp_path / "s.pdf")
    build(tmp_path / "w", source, [])
    found = text_of(tmp_path / "w" / "final.pdf", "-f", "2")
    for piece in (
        "Relevédenotes", "Bacblanc–Mathématiques", "12mars2026", "K7QX-42MB", "13,25/20", "Exercice1:dériverf",
        "Rédactiontrèssoignée.", "NT", "Bondevoir.Continuezainsi!", "C-07", "18mars2026à14:05UTC", sha256(source),
        "https://notes.example.org/verify/019405ab-7c1e-7b10-9d1e-0d5b2f7f1a11/2",
    ):  # fmt: skip
        assert piece in found, piece
    build(tmp_path / "x", source, [], public_url=None, language="en")
    found = text_of(tmp_path / "x" / "final.pdf", "-f", "2")
    assert "019405ab-7c1e-7b10-9d1e-0d5b2f7f1a11/2" in found
    assert "/verify/" not in found
    assert "13.25/20" in found


def test_a_long_score_table_runs_over_pages(tmp_path: Path) -> None:
    questions = [
        question(
            n,
            f"Question {n}. " + "Démontrer que la suite converge. " * (n % 5),
            100,
            50,
            remark=TEXTS[n % 4] * (n % 7),
            depth=n % 3,
        )
        for n in range(90)
    ]
    appreciation = "\n".join(f"{n}. {TEXTS[n % 4]}" for n in range(120))
    result = build(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [], questions=questions, appreciation=appreciation)
    assert result["score_pages"] >= 4
    found = text_of(tmp_path / "w" / "final.pdf")
    joined = running_text_of(tmp_path / "w" / "final.pdf")
    for q in questions:
        assert re.sub(r"\s", "", q["label"]) in joined
    assert f"page{result['score_pages']}/{result['score_pages']}" in found
    for line in appreciation.splitlines():
        assert re.sub(r"\s", "", line) in joined


# -- refusals


def refused(workdir: Path, source: Path, annotations: list[Any], **more: Any) -> EngineError:
    workdir.mkdir(exist_ok=True)
    (workdir / "source.pdf").write_bytes(source.read_bytes())
    good = small_pdf(workdir / "good.pdf")
    (workdir / "manifest.json").write_text(
        json.dumps(manifest_of(good, annotations, source_sha256=sha256(source)) | more)
    )
    with pytest.raises(EngineError) as caught:
        append(workdir)
    assert not (workdir / "final.pdf").exists()
    return caught.value


def test_a_missing_page_is_named(tmp_path: Path) -> None:
    pages = [{"page_id": f"p{i}", "index": i, "width": 595, "height": 842} for i in range(3)]
    error = refused(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [], pages=pages)
    assert (error.reason, error.message) == ("MISSING_PAGE", "page 2 of the source is missing")
    error = refused(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [], pages=[pages[0], pages[2]])
    assert (error.reason, error.message) == ("MISSING_PAGE", "page 2 is not in the manifest")
    assert refused(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [], pages=[]).reason == "UNEXPECTED_PAGE"


@pytest.mark.parametrize(
    ("box", "page"),
    [
        ((0.9, 0.1, 0.2, 0.1), 0), ((0.1, 0.95, 0.1, 0.1), 0), ((-0.01, 0.1, 0.1, 0.1), 0), ((0.1, 0.1, -0.1, 0.1), 0),
        ((float("nan"), 0.1, 0.1, 0.1), 0), ((0.1, 0.1, 0.1, float("inf")), 0), ((0.1, 0.1, 0.1, 0.1), 1),
        ((0.1, 0.1, 0.1, 0.1), -1),
    ],
)  # fmt: skip
def test_an_annotation_outside_is_refused(tmp_path: Path, box: tuple[float, ...], page: int) -> None:
    error = refused(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [annotation(1, page, "COMMENT", box)])
    assert error.reason == "ANNOTATION_OUT_OF_PAGE"
    assert "a001" in error.message


def test_ink_outside_is_refused(tmp_path: Path) -> None:
    strokes = [{"width": 0.01, "points": [[0.5, 0.5], [1.5, 0.5]]}]
    error = refused(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [annotation(1, 0, "INK", BOX, strokes=strokes)])
    assert error.reason == "ANNOTATION_OUT_OF_PAGE"


def test_sources_that_cannot_be_built_upon(tmp_path: Path) -> None:
    good = small_pdf(tmp_path / "good.pdf")
    (tmp_path / "cut.pdf").write_bytes(good.read_bytes()[:-60])
    (tmp_path / "text.pdf").write_bytes(b"not a PDF at all")
    with pikepdf.open(good) as pdf:
        pdf.save(tmp_path / "locked.pdf", encryption=pikepdf.Encryption(owner="o", user="u"))
        pdf.save(tmp_path / "owner.pdf", encryption=pikepdf.Encryption(owner="o", user=""))
    for name in ("cut", "text", "locked", "owner"):
        error = refused(tmp_path / "w", tmp_path / f"{name}.pdf", [])
        assert error.reason == "SOURCE_UNREADABLE", name
        assert str(tmp_path) not in error.message


def test_another_source_than_the_manifest_names(tmp_path: Path) -> None:
    workdir = tmp_path / "w"
    workdir.mkdir()
    small_pdf(workdir / "source.pdf")
    document = manifest_of(workdir / "source.pdf", [], source_sha256="00" * 32)
    (workdir / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(EngineError, match="SOURCE_CHANGED"):
        append(workdir)
    assert not (workdir / "final.pdf").exists()


@pytest.mark.parametrize("change", [{"v": 2}, {"questions": [{"id": "x"}]}, {"exam": None}, {"revision": "two"}])
def test_a_manifest_that_is_not_one(tmp_path: Path, change: dict[str, Any]) -> None:
    assert refused(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [{"id": "x"}]).reason == "MANIFEST_INVALID"
    assert refused(tmp_path / "w", small_pdf(tmp_path / "s.pdf"), [], **change).reason == "MANIFEST_INVALID"


def test_verify_refuses_what_is_not_the_copy(tmp_path: Path) -> None:
    build(tmp_path, small_pdf(tmp_path / "s.pdf"), some_annotations(1))
    good = (tmp_path / "final.pdf").read_bytes()

    def check(data: bytes, pages: int = 2) -> str:
        (tmp_path / "final.pdf").write_bytes(data)
        with pytest.raises(EngineError) as caught:
            verify(tmp_path, final="final.pdf", source="source.pdf", expected_pages=pages)
        return caught.value.reason

    flipped = bytearray(good)
    flipped[100] ^= 1
    assert check(bytes(flipped)) == "FINAL_INVALID"
    assert check(good[: len((tmp_path / "source.pdf").read_bytes())], 1) == "FINAL_INVALID"  # nothing was appended
    assert check(good, 3) == "FINAL_INVALID"
    assert check(b"") == "FINAL_INVALID"


def test_it_runs_in_the_sandbox_of_the_product(tmp_path: Path) -> None:
    source = small_pdf(tmp_path / "s.pdf")
    outside = build(tmp_path / "w", source, some_annotations(1))
    sandbox = Sandbox(preload=["korrigo_render.engine.append", "korrigo_render.engine.verify"])
    limits = Limits(wall_seconds=30, cpu_seconds=20)
    try:
        inside_dir = tmp_path / "inside"
        inside_dir.mkdir()
        for name in ("source.pdf", "manifest.json"):
            (inside_dir / name).write_bytes((tmp_path / "w" / name).read_bytes())
        inside = sandbox.run("korrigo_render.engine.append:append", {}, workdir=inside_dir, limits=limits)
        assert inside == outside
        arguments = {"final": "final.pdf", "source": "source.pdf", "expected_pages": inside["pages"]}
        checked = sandbox.run("korrigo_render.engine.verify:verify", arguments, workdir=inside_dir, limits=limits)
        assert checked["sha256"] == inside["sha256"]
        (inside_dir / "source.pdf").write_bytes(b"%PDF-1.7\nnothing\n")
        with pytest.raises(EngineError) as caught:
            sandbox.run("korrigo_render.engine.append:append", {}, workdir=inside_dir, limits=limits)
        assert caught.value.reason == "SOURCE_UNREADABLE"
    finally:
        sandbox.close()
