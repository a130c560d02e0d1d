"""The final PDF: the source's bytes and an incremental update, right in every reader and at the right place.

Over the scans of the shared corpora, over a good part of the hostile ones, and over small PDFs made here with every
geometry and every kind of cross-reference section. Readers: qpdf, poppler, PDFium; none of them wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pikepdf
import pypdfium2
import pytest

from harness.corpora import CORPORA, truth
from korrigo_kit.sandbox import EngineError, Limits, Sandbox
from korrigo_render.engine.append import append
from korrigo_render.engine.verify import verify

KINDS = ("COMMENT", "HIGHLIGHT", "ERROR", "BONUS", "TEXT", "INK", "STAMP")
TEXTS = (
    "Erreur de signe : −3 au lieu de +3.",
    "Très bon raisonnement, mais vérifiez l’hypothèse α ≤ β avant d’appliquer le théorème.",
    "Où est l’unité ? Œuvre inachevée.",
    "Jusqu’ici ∑ k² ≠ n(n+1)/2, √(x²) = |x| → revoir Ω.",
)
SCANS = sorted((CORPORA / "scans" / "a4").glob("*.pdf"))
ACCEPTED = sorted(
    name for name, entry in truth("hard-pdfs/expected.json").get("files", {}).items() if entry["expected"] == "accepted"
)
Pixels = npt.NDArray[np.uint8]


def annotation(
    number: int, page: int, kind: str, box: Sequence[float], content: str = "", **more: Any
) -> dict[str, Any]:
    x, y, w, h = box
    return {
        "id": f"a{number:03d}", "page_index": page, "x": x, "y": y, "w": w, "h": h, "type": kind, "content": content,
        "score_delta_hundredths": None, "question_label": None, **more,
    }  # fmt: skip


def manifest_of(source: Path, annotations: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    sizes = page_sizes(source)
    return {
        "v": 1,
        "copy_id": "019405ab-7c1e-7b10-9d1e-0d5b2f7f1a11",
        "anonymous_id": "K7QX-42MB",
        "revision": 2,
        "exam": {"name": "Bac blanc – Mathématiques", "date": "2026-03-12"},
        "pages": [{"page_id": f"p{i}", "index": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
        "annotations": annotations,
        "questions": [
            question(1, "Exercice 1 : dériver f", 600, 450),
            question(2, "Exercice 2", 400, None, state="NOT_ATTEMPTED"),
            question(3, "Exercice 3", 1000, 875, remark="Rédaction très soignée."),
        ],
        "total_hundredths": 1325,
        "max_hundredths": 2000,
        "appreciation": "Bon devoir.\nContinuez ainsi !",
        "marker_code": "C-07",
        "finalized_at": "2026-03-18T14:05:00+00:00",
        "source_sha256": sha256(source),
        "public_url": "https://notes.example.org",
        "language": "fr",
        **more,
    }


def question(
    number: int, label: str, most: int, score: int | None, state: str = "SCORED", **more: Any
) -> dict[str, Any]:
    return {
        "id": f"q{number}", "label": label, "max_hundredths": most, "score_hundredths": score, "state": state, **more,
    }  # fmt: skip


def some_annotations(pages: int) -> list[dict[str, Any]]:
    """One of each type on every page, with texts, at spots that do not repeat."""
    made = []
    for page in range(pages):
        for i, kind in enumerate(KINDS):
            n = page * len(KINDS) + i
            box = (0.08 + 0.11 * (n % 7), 0.06 + 0.13 * i, 0.12, 0.03)
            a = annotation(n, page, kind, box, TEXTS[n % len(TEXTS)])
            if kind in ("ERROR", "BONUS"):
                a |= {"score_delta_hundredths": -100 if kind == "ERROR" else 50, "question_label": "Ex 1.a"}
            if kind == "STAMP":
                a["content"] = "✓✗?"[page % 3]
            if kind == "INK":
                points = [[box[0] + box[2] * t / 30, box[1] + box[3] * (t % 5) / 5, 0.5] for t in range(31)]
                a |= {"content": "", "strokes": [{"width": 0.004, "points": points}]}
            made.append(a)
    return made


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def page_sizes(path: Path) -> list[tuple[float, float]]:
    with pypdfium2.PdfDocument(path) as document:
        return [document.get_page_size(i) for i in range(len(document))]


def build(workdir: Path, source: Path, annotations: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Run the engine as the product does and check what must hold for every final PDF."""
    workdir.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    (workdir / "source.pdf").write_bytes(data)
    (workdir / "manifest.json").write_text(json.dumps(manifest_of(source, annotations, **more)))
    result = append(workdir)
    final = (workdir / "final.pdf").read_bytes()
    assert final[: len(data)] == data
    assert (len(final), hashlib.sha256(final).hexdigest()) == (result["size"], result["sha256"])
    checked = verify(
        workdir, final="final.pdf", source="source.pdf", expected_pages=result["pages"],
        annotated_pages=result["annotated_pages"],
    )  # fmt: skip
    assert (checked["pages"], checked["source_pages"]) == (result["pages"], result["source_pages"])
    assert checked["sha256"] == result["sha256"]
    append(workdir, out="again.pdf")
    assert (workdir / "again.pdf").read_bytes() == final, "not deterministic"
    return result


def qpdf_code(path: Path) -> int:
    return subprocess.run(["qpdf", "--check", path], capture_output=True, check=False).returncode


def text_of(path: Path, *options: str) -> str:
    """Return the text without white space: where lines break is a matter of layout."""
    run = subprocess.run(["pdftotext", "-raw", *options, path, "-"], capture_output=True, check=True)
    return re.sub(r"\s", "", run.stdout.decode())


def running_text_of(path: Path) -> str:
    """Return the text without white space and without what is repeated on every score page."""
    run = subprocess.run(["pdftotext", "-raw", path, "-"], capture_output=True, check=True)
    text = re.sub(r"Bac blanc – Mathématiques Copie K7QX-42MB · page \d+/\d+\n", "", run.stdout.decode())
    return re.sub(r"\s", "", text).replace("QuestionNoteBarème", "")


def assert_texts_found(path: Path, annotations: list[dict[str, Any]]) -> None:
    found = running_text_of(path)
    for a in annotations:
        assert re.sub(r"\s", "", a["content"]) in found, a


# -- the corpora


@pytest.mark.parametrize("source", SCANS, ids=lambda p: p.stem)
@pytest.mark.allowed_skip("a checkout without ../shared has no corpora")
def test_scans(source: Path, tmp_path: Path) -> None:
    annotations = some_annotations(len(page_sizes(source)))
    result = build(tmp_path, source, annotations)
    assert result["score_pages"] == 1
    assert qpdf_code(tmp_path / "final.pdf") == 0
    assert_texts_found(tmp_path / "final.pdf", annotations)
    tail = result["size"] - source.stat().st_size
    assert tail <= 1024 * len(annotations) + 11 * 1024, f"{tail} bytes for {len(annotations)} annotations"


@pytest.mark.allowed_skip("a checkout without ../shared has no corpora")
@pytest.mark.skipif(not CORPORA.is_dir(), reason=f"CORPORA MISSING: {CORPORA} is not there")
def test_the_scans_are_there() -> None:
    assert len(SCANS) >= 12
    assert len(ACCEPTED) >= 100


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.allowed_skip("a checkout without ../shared has no corpora")
def test_hostile_files_that_import_accepts(name: str, tmp_path: Path) -> None:
    source = CORPORA / "hard-pdfs" / name
    annotations = some_annotations(min(2, len(page_sizes(source))))
    build(tmp_path, source, annotations)
    assert qpdf_code(tmp_path / "final.pdf") <= qpdf_code(source), "qpdf finds what it did not find in the source"
    assert_texts_found(tmp_path / "final.pdf", annotations)


# -- geometry, on PDFs made here

MARK = b"q 0 0.6 0 rg 150 200 40 25 re f Q\n"  # a green block in the page's own content


def small_pdf(
    path: Path,
    *,
    rotate: int = 0,
    media: Sequence[float] = (0, 0, 595, 842),
    crop: Sequence[float] | None = None,
    streams: bool = False,
    content: bytes = MARK,
    inherit: bool = False,
    change: Callable[[pikepdf.Pdf], None] | None = None,
) -> Path:
    with pikepdf.new() as pdf:
        page = pikepdf.Dictionary(
            Type=pikepdf.Name.Page, Contents=pdf.make_stream(content), Resources=pikepdf.Dictionary()
        )
        holder = pdf.Root.Pages if inherit else page
        holder.MediaBox = pikepdf.Array(list(media))
        if crop is not None:
            holder.CropBox = pikepdf.Array(list(crop))
        if rotate:
            holder.Rotate = rotate
        if inherit:
            del page["/Resources"]
            font = pikepdf.Dictionary(
                Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Helvetica
            )
            holder.Resources = pikepdf.Dictionary(Font=pikepdf.Dictionary(H=font))
        reference = pdf.make_indirect(page)
        reference.Parent = pdf.Root.Pages
        pdf.Root.Pages.Kids = pikepdf.Array([reference])
        pdf.Root.Pages.Count = 1
        if change is not None:
            change(pdf)
        mode = pikepdf.ObjectStreamMode.generate if streams else pikepdf.ObjectStreamMode.disable
        pdf.save(path, object_stream_mode=mode, deterministic_id=True)
    return path


def pixels(path: Path, index: int = 0) -> Pixels:
    """Render a page at one pixel a unit, as RGB."""
    with pypdfium2.PdfDocument(path) as document:
        bitmap = document[index].render(scale=1, rev_byteorder=True)
        return np.array(bitmap.to_numpy())[:, :, :3]


def red_box(picture: Pixels) -> tuple[float, float, float, float]:
    """Return x, y, w, h (fractions) of what is drawn in the colour of ERROR."""
    red, green, blue = (picture[:, :, i].astype(int) for i in range(3))
    ys, xs = np.nonzero((red > 150) & (green < 110) & (blue < 110))
    assert len(xs), "nothing red on the page"
    height, width = red.shape
    left, top = xs.min() / width, ys.min() / height
    return left, top, (xs.max() + 1) / width - left, (ys.max() + 1) / height - top


def assert_box_at(source: Path, workdir: Path, box: tuple[float, float, float, float]) -> None:
    """Annotate with one empty ERROR box; it must show where it was put, and all else must look as before."""
    build(workdir, source, [annotation(1, 0, "ERROR", box)])
    before, after = pixels(workdir / "source.pdf"), pixels(workdir / "final.pdf")
    assert before.shape == after.shape
    found = red_box(after)
    for axis, (seen, wanted) in enumerate(zip(found, box, strict=True)):
        assert abs(seen - wanted) * after.shape[1 - axis % 2] <= 2, (found, box)
    height, width = after.shape[:2]
    mask = np.ones((height, width), bool)
    x, y, w, h = box
    mask[int(y * height) - 2 : int((y + h) * height) + 3, int(x * width) - 2 : int((x + w) * width) + 3] = False
    assert np.abs(before.astype(int) - after.astype(int))[mask].max() == 0, "the page itself looks different"
    assert qpdf_code(workdir / "final.pdf") == 0


BOX = (0.2, 0.3, 0.25, 0.1)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270, -90, 450])
@pytest.mark.parametrize("streams", [False, True], ids=["table", "xref-stream"])
@pytest.mark.parametrize(
    ("media", "crop"),
    [
        ((0, 0, 595, 842), None),
        ((-100, 50, 495, 892), None),
        ((0, 0, 700, 900), (50, 30, 645, 872)),
        ((-20, -30, 700, 900), (-50, 100, 500, 2000)),
        ((595, 842, 0, 0), None),
    ],
    ids=["plain", "offset", "crop", "crop-beyond-media", "corners-swapped"],
)
def test_boxes_are_where_the_fractions_say(
    tmp_path: Path, rotate: int, streams: bool, media: tuple[int, ...], crop: tuple[int, ...] | None
) -> None:
    source = small_pdf(tmp_path / "s.pdf", rotate=rotate, media=media, crop=crop, streams=streams)
    assert_box_at(source, tmp_path / "w", BOX)


@pytest.mark.parametrize("streams", [False, True], ids=["table", "xref-stream"])
@pytest.mark.parametrize("rotate", [0, 90])
def test_inherited_attributes_hold_for_the_page_and_not_for_the_score_page(
    tmp_path: Path, rotate: int, streams: bool
) -> None:
    content = MARK + b"BT /H 20 Tf 100 400 Td (inherited font) Tj ET\n"
    source = small_pdf(
        tmp_path / "s.pdf", rotate=rotate, media=(10, 20, 900, 700), crop=(30, 40, 800, 600), inherit=True,
        content=content, streams=streams,
    )  # fmt: skip
    assert_box_at(source, tmp_path / "w", BOX)
    assert "inheritedfont" in text_of(tmp_path / "w" / "final.pdf")
    width, height = page_sizes(tmp_path / "w" / "final.pdf")[1]
    assert (round(width), round(height)) == (595, 842)


def _user_unit(pdf: pikepdf.Pdf) -> None:
    pdf.Root.Pages.Kids[0].UserUnit = 2.0


def _rotated_twice(pdf: pikepdf.Pdf) -> None:
    page = pdf.Root.Pages.Kids[0]
    page.Rotate = 90
    page.Contents = pdf.make_indirect(pikepdf.Array([page.Contents, pdf.make_stream(b"")]))


def _no_content(pdf: pikepdf.Pdf) -> None:
    del pdf.Root.Pages.Kids[0]["/Contents"]


def _taken_name(pdf: pikepdf.Pdf) -> None:
    form = pdf.make_stream(
        b"0 0 1 rg 0 0 50 50 re f",
        {"/Type": pikepdf.Name.XObject, "/Subtype": pikepdf.Name.Form, "/BBox": [0, 0, 99, 99]},
    )
    page = pdf.Root.Pages.Kids[0]
    page.Resources = pdf.make_indirect(pikepdf.Dictionary(XObject=pdf.make_indirect(pikepdf.Dictionary(Korrigo=form))))
    page["/Odd Name(1)"] = pikepdf.String("kept \\ (as) it is")
    page.Contents = pdf.make_stream(b"/Korrigo Do")


def _deep_tree(pdf: pikepdf.Pdf) -> None:
    root, page = pdf.Root.Pages, pdf.Root.Pages.Kids[0]
    middle = pdf.make_indirect(pikepdf.Dictionary(Type=pikepdf.Name.Pages, Count=1, Parent=root, Kids=[page]))
    page.Parent = middle
    root.Kids = pikepdf.Array([middle])


@pytest.mark.parametrize("change", [_user_unit, _rotated_twice, _no_content, _taken_name, _deep_tree])
@pytest.mark.parametrize("streams", [False, True], ids=["table", "xref-stream"])
def test_odd_but_valid_pages(tmp_path: Path, change: Callable[[pikepdf.Pdf], None], streams: bool) -> None:
    source = small_pdf(tmp_path / "s.pdf", change=change, streams=streams)
    assert_box_at(source, tmp_path / "w", BOX)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"0.1 0 0 0.1 40 40 cm 0 1 0 rg 1000 1000 300 300 re f", id="scaled"),
        pytest.param(b"q q 0.1 0 0 0.1 40 40 cm 0 1 0 rg 1000 1000 300 300 re f", id="left-open"),
        pytest.param(b"0.5 0 0 0.5 9 9 cm Q Q 0 1 0 rg 200 200 30 30 re f", id="closed-too-often"),
        pytest.param(b"q 0 0 1 1 re W n 0 1 0 rg 0 0 9 9 re f", id="clipped"),
        pytest.param(b"BT 1 0 0 1 50 50 Tm", id="text-left-open"),
        pytest.param(b"0 1 0 rg 200 200 30 30 re f [ /array", id="array-left-open"),
        pytest.param(b"0 1 0 rg 200 200 30 30 re f (string", id="string-left-open"),
        pytest.param(b"/OC /Hidden BDC 0 1 0 rg 200 200 30 30 re f", id="hidden-layer-left-open"),
    ],
)
def test_what_a_page_leaves_open_does_not_touch_the_overlay(tmp_path: Path, content: bytes) -> None:
    def add_layer(pdf: pikepdf.Pdf) -> None:
        layer = pdf.make_indirect(pikepdf.Dictionary(Type=pikepdf.Name.OCG, Name="hidden"))
        pdf.Root.OCProperties = pikepdf.Dictionary(
            OCGs=[layer], D=pikepdf.Dictionary(OFF=pikepdf.Array([layer]), Order=pikepdf.Array([layer]))
        )
        pdf.Root.Pages.Kids[0].Resources = pikepdf.Dictionary(Properties=pikepdf.Dictionary(Hidden=layer))

    assert_box_at(small_pdf(tmp_path / "s.pdf", content=content, change=add_layer), tmp_path / "w", BOX)


def test_a_page_listed_twice_is_annotated_once(tmp_path: Path) -> None:
    def twice(pdf: pikepdf.Pdf) -> None:
        page = pdf.Root.Pages.Kids[0]
        pdf.Root.Pages.Kids = pikepdf.Array([page, page])
        pdf.Root.Pages.Count = 2

    source = small_pdf(tmp_path / "s.pdf", change=twice)
    build(tmp_path / "w", source, [annotation(1, 1, "ERROR", BOX)])
    final = tmp_path / "w" / "final.pdf"
    assert np.array_equal(pixels(final, 0), pixels(source, 0))
    assert red_box(pixels(final, 1))


def hybrid_pdf(path: Path) -> Path:
    """Write a hybrid file: a graphics state of the page lies in an object stream that only /XRefStm lists."""
    out = bytearray(b"%PDF-1.5\n")
    offsets: dict[int, int] = {}

    def add(number: int, body: bytes) -> None:
        offsets[number] = len(out)
        out.extend(b"%d 0 obj\n" % number + body + b"\nendobj\n")

    def stream(entries: bytes, data: bytes) -> bytes:
        return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (entries, len(data), data)

    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</ExtGState<</G 3 0 R>>>>/Contents 4 0 R>>"
    add(1, b"<</Type/Catalog/Pages 2 0 R>>")
    add(2, b"<</Type/Pages/Kids[7 0 R]/Count 1>>")
    add(4, stream(b"", b"/G gs " + MARK))
    add(5, stream(b"/Type/ObjStm/N 1/First 4", b"3 0 <</ca 0.5>>"))
    rows = b"\x02" + (5).to_bytes(4, "big") + b"\x00"
    add(6, stream(b"/Type/XRef/W[1 4 1]/Index[3 1]/Size 8", rows))
    add(7, page)
    xref_at = len(out)
    out += b"xref\n0 8\n0000000003 65535 f \n"
    for number in range(1, 8):
        out += b"0000000000 00000 f \n" if number == 3 else b"%010d 00000 n \n" % offsets[number]
    out += b"trailer\n<</Size 8/Root 1 0 R/XRefStm %d>>\nstartxref\n%d\n%%%%EOF" % (offsets[6], xref_at)
    path.write_bytes(out)
    return path


def test_a_hybrid_file(tmp_path: Path) -> None:
    source = hybrid_pdf(tmp_path / "s.pdf")
    assert qpdf_code(source) == 0
    assert_box_at(source, tmp_path / "w", BOX)


def test_bytes_before_the_header_shift_every_offset(tmp_path: Path) -> None:
    plain = small_pdf(tmp_path / "plain.pdf")
    (tmp_path / "s.pdf").write_bytes(b"scanner says hello\n" + plain.read_bytes())
    build(tmp_path / "w", tmp_path / "s.pdf", [annotation(1, 0, "ERROR", BOX)])
    assert red_box(pixels(tmp_path / "w" / "final.pdf"))
    assert qpdf_code(tmp_path / "w" / "final.pdf") <= qpdf_code(tmp_path / "s.pdf")


def test_a_final_can_be_the_source_of_another(tmp_path: Path) -> None:
    """Appending to what was appended to: the chain of /Prev and a reused object number hold."""
    for streams in (False, True):
        first = small_pdf(tmp_path / f"s{streams}.pdf", streams=streams)
        build(tmp_path / f"one{streams}", first, [annotation(1, 0, "BONUS", (0.6, 0.6, 0.2, 0.1), "Bien")])
        build(tmp_path / f"two{streams}", tmp_path / f"one{streams}" / "final.pdf", [annotation(1, 0, "ERROR", BOX)])
        final = tmp_path / f"two{streams}" / "final.pdf"
        assert qpdf_code(final) == 0
        assert red_box(pixels(final)) == pytest.approx(BOX, abs=0.005)
        assert "Bien" in text_of(final)


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
