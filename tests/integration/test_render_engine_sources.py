"""The final PDF: the source's bytes and an incremental update, right in every reader and at the right place.

Over the scans of the shared corpora, over a good part of the hostile ones, and over small PDFs made here with every
geometry and every kind of cross-reference section. Readers: qpdf, poppler, PDFium; none of them wrote the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pikepdf
import pytest

from harness.corpora import CORPORA, truth
from harness.final_pdfs import (
    BOX,
    MARK,
    Pixels,
    annotation,
    assert_texts_found,
    build,
    page_sizes,
    pixels,
    qpdf_code,
    small_pdf,
    some_annotations,
    text_of,
)

SCANS = sorted((CORPORA / "scans" / "a4").glob("*.pdf"))
ACCEPTED = sorted(
    name for name, entry in truth("hard-pdfs/expected.json").get("files", {}).items() if entry["expected"] == "accepted"
)


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
