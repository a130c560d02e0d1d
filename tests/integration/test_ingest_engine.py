"""The import engine on files made here: what is refused, what a copy's source holds, what its pictures show."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path

import numpy as np
import pikepdf
import pytest
from PIL import Image

from harness.ingest_engine import (
    altered,
    cut,
    difference,
    image_hashes,
    label_of,
    refused,
    rendered,
    requests,
    require_sound,
    share_resources,
)
from harness.pdfs import Label, a3_booklets, a4_booklets, draw_page, read_label
from korrigo_ingest.domain.plan import Mode
from korrigo_ingest.engine import codec
from korrigo_ingest.engine.cutting import cut_copies
from korrigo_ingest.engine.inspection import inspect_pdf
from korrigo_ingest.engine.pictures import page_pictures
from korrigo_ingest.engine.scaling import scaled


@pytest.fixture
def booklet(tmp_path: Path) -> Path:
    return a4_booklets(tmp_path / "source.pdf", document=3, booklets=2, pages=2)


# -- what is refused


class TestRefusals:
    def test_what_is_no_pdf(self, tmp_path: Path) -> None:
        (tmp_path / "empty.pdf").write_bytes(b"")
        (tmp_path / "page.pdf").write_bytes(b"<html>%PDF is a format</html>")
        (tmp_path / "cut.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog")
        assert refused(tmp_path, "empty.pdf") == "EMPTY_FILE"
        assert refused(tmp_path, "page.pdf") == "INVALID_MIME_TYPE"
        assert refused(tmp_path, "cut.pdf") == "CORRUPTED_PDF"

    def test_limits_on_pages(self, booklet: Path) -> None:
        assert refused(booklet.parent, booklet.name, max_pages=3) == "TOO_MANY_PAGES"
        assert refused(booklet.parent, booklet.name, max_page_points=800) == "PAGE_TOO_LARGE"
        assert inspect_pdf(booklet.parent, max_pages=4)["page_count"] == 4

    def test_passwords(self, booklet: Path) -> None:
        target = altered(
            booklet, booklet.with_name("locked.pdf"), lambda _: None, encryption=pikepdf.Encryption(user="a", owner="b")
        )
        assert refused(target.parent, target.name) == "ENCRYPTED"

    @pytest.mark.parametrize("place", ["names", "open", "catalog", "page", "chained"])
    def test_scripts_that_start_by_themselves(self, booklet: Path, place: str) -> None:
        def add(pdf: pikepdf.Pdf) -> None:
            script = pikepdf.Dictionary(S=pikepdf.Name.JavaScript, JS="app.alert(1)")
            if place == "names":
                tree = pikepdf.Dictionary(Kids=[pikepdf.Dictionary(Names=["a", script])])
                pdf.Root.Names = pikepdf.Dictionary(JavaScript=pdf.make_indirect(tree))
            elif place == "open":
                pdf.Root.OpenAction = script
            elif place == "catalog":
                pdf.Root.AA = pikepdf.Dictionary(WC=script)
            elif place == "page":
                pdf.pages[2].obj.AA = pikepdf.Dictionary(O=script)
            else:
                pdf.Root.OpenAction = pikepdf.Dictionary(S=pikepdf.Name.GoTo, Next=[script])

        target = altered(booklet, booklet.with_name("script.pdf"), add)
        assert refused(target.parent, target.name) == "JAVASCRIPT"

    def test_programs_and_outside_data(self, booklet: Path) -> None:
        def launch(pdf: pikepdf.Pdf) -> None:
            pdf.Root.OpenAction = pikepdf.Dictionary(S=pikepdf.Name.Launch, F="calc.exe")

        def outside(pdf: pikepdf.Pdf) -> None:
            stream = pikepdf.Stream(pdf, b"")
            stream.stream_dict["/F"] = pikepdf.String("/etc/passwd")
            pdf.pages[1].obj.Contents = pdf.make_indirect(stream)

        for change in (launch, outside):
            target = altered(booklet, booklet.with_name("active.pdf"), change)
            assert refused(target.parent, target.name) == "ACTIVE_CONTENT"

    def test_a_stream_that_blows_up(self, booklet: Path) -> None:
        def blow(pdf: pikepdf.Pdf) -> None:
            pdf.pages[0].obj.Contents = pdf.make_stream(b"q Q " * (20 << 20))

        target = altered(booklet, booklet.with_name("bomb.pdf"), blow)
        assert target.stat().st_size < 1 << 20
        assert refused(target.parent, target.name) == "RESOURCE_LIMIT"

    def test_a_page_count_that_readers_dispute(self, booklet: Path) -> None:
        (booklet.parent / "count.pdf").write_bytes(booklet.read_bytes().replace(b"/Count 4", b"/Count 9"))
        assert refused(booklet.parent, "count.pdf") == "CORRUPTED_PDF"


# -- what is clean


class TestCleanliness:
    def test_a_clean_upload_of_one_copy_is_its_own_source(self, booklet: Path) -> None:
        found = inspect_pdf(booklet.parent)
        assert (found["clean"], found["repaired"], found["clean_reasons"]) == (True, False, [])
        _, [copy] = cut(booklet.parent, booklet.name, Mode.A4_SINGLE, 0)
        assert (copy["verbatim"], copy["file"], copy["page_count"]) == (True, "source.pdf", 4)
        assert copy["sha256"] == hashlib.sha256(booklet.read_bytes()).hexdigest()

    def test_what_acts_on_a_click_or_hides_in_it_is_left_out(self, booklet: Path) -> None:
        def load(pdf: pikepdf.Pdf) -> None:
            pdf.attachments["notes.txt"] = b"secret of another student"
            pdf.docinfo["/Author"] = "Scanner 12, room 3"
            with pdf.open_metadata() as metadata:
                metadata["dc:title"] = "metadata of the upload"
            action = pikepdf.Dictionary(S=pikepdf.Name.JavaScript, JS="app.alert(2)")
            link = pikepdf.Dictionary(Type=pikepdf.Name.Annot, Subtype=pikepdf.Name.Link, Rect=[0, 0, 50, 50], A=action)
            pdf.pages[0].obj.Annots = pikepdf.Array([pdf.make_indirect(link)])

        target = altered(booklet, booklet.with_name("loaded.pdf"), load)
        found = inspect_pdf(target.parent, source=target.name)
        assert (found["clean"], found["clean_reasons"]) == (False, ["ACTIVE_CONTENT"])
        _, [copy] = cut(target.parent, target.name, Mode.A4_SINGLE, 0)
        made = target.parent / copy["file"]
        require_sound(made)
        content = made.read_bytes()
        for word in (b"secret", b"Scanner", b"metadata", b"JavaScript", b"/Info", b"/Annots", b"/Metadata", b"notes"):
            assert word not in content
        with pikepdf.open(made) as pdf:
            assert len(pdf.pages) == 4

    def test_bytes_around_the_document_and_encryption(self, booklet: Path) -> None:
        folder, data = booklet.parent, booklet.read_bytes()
        (folder / "tail.pdf").write_bytes(data + b"PK\x03\x04 an archive")
        owner_only = pikepdf.Encryption(user="", owner="b")
        altered(booklet, folder / "owner.pdf", lambda _: None, encryption=owner_only)
        where = data.rindex(b"startxref")
        (folder / "repaired.pdf").write_bytes(data[:where] + b"startxref\n7\n%%EOF\n")
        names = ("tail.pdf", "owner.pdf", "repaired.pdf")
        reasons = {name: inspect_pdf(folder, source=name)["clean_reasons"] for name in names}
        assert reasons == {"tail.pdf": ["BYTES_AFTER_END"], "owner.pdf": ["ENCRYPTION"], "repaired.pdf": ["REPAIRED"]}
        for name in reasons:
            _, [copy] = cut(folder, name, Mode.A4_SINGLE, 0)
            require_sound(folder / copy["file"])
            assert (copy["verbatim"], copy["page_count"]) == (False, 4)
            assert b"/Encrypt" not in (folder / copy["file"]).read_bytes()

    def test_what_was_typed_into_a_form_stays_visible(self, booklet: Path) -> None:
        def fill(pdf: pikepdf.Pdf) -> None:
            look = pdf.make_stream(
                b"0 0 1 rg 0 0 300 300 re f",
                Type=pikepdf.Name.XObject,
                Subtype=pikepdf.Name.Form,
                BBox=[0, 0, 300, 300],
            )
            field = pikepdf.Dictionary(
                Type=pikepdf.Name.Annot, Subtype=pikepdf.Name.Widget, FT=pikepdf.Name.Tx, T="answer", V="42", F=4,
                Rect=[100, 100, 400, 400], AP=pikepdf.Dictionary(N=look),
                AA=pikepdf.Dictionary(K=pikepdf.Dictionary(S=pikepdf.Name.JavaScript, JS="1")),
            )  # fmt: skip
            field = pdf.make_indirect(field)
            pdf.pages[0].obj.Annots = pikepdf.Array([field])
            pdf.Root.AcroForm = pikepdf.Dictionary(Fields=[field])

        target = altered(booklet, booklet.with_name("form.pdf"), fill)
        _, [copy] = cut(target.parent, target.name, Mode.A4_SINGLE, 0)
        [picture] = page_pictures(target.parent, source=target.name, pages=[{"index": 0}])
        shown = Image.open(target.parent / picture["file"])
        for image in (rendered(target.parent / copy["file"], 0), shown):
            red, _, blue = image.getpixel((image.width * 250 // 595, image.height * (842 - 250) // 842))  # type: ignore[misc]
            assert blue > 200 > 50 > red
        assert b"JavaScript" not in (target.parent / copy["file"]).read_bytes()


# -- what a copy holds


class TestCopies:
    def test_sheets_come_out_page_by_page_sharing_their_scan(self, tmp_path: Path) -> None:
        a3_booklets(tmp_path / "source.pdf", document=7, booklets=3)
        plan, copies = cut(tmp_path, "source.pdf", Mode.A3_TO_A4, 4)
        assert len(copies) == 3
        total = sum(copy["size"] for copy in copies)
        assert total < 1.2 * (tmp_path / "source.pdf").stat().st_size
        for number, copy in enumerate(copies, start=1):
            path = tmp_path / copy["file"]
            require_sound(path)
            assert [page["cropped"] for page in copy["pages"]] == [False] * 4
            assert [round(page["width"]) for page in copy["pages"]] == [595] * 4
            labels = [read_label(rendered(path, index, 72)) for index in range(4)]
            assert labels == [Label(7, number, page) for page in (1, 2, 3, 4)]
            assert len(image_hashes(path)) == 2
        pictures = page_pictures(tmp_path, pages=[page for copy in requests(plan) for page in copy])
        assert [label_of(tmp_path / picture["file"]) for picture in pictures] == [
            str(Label(7, booklet, page)) for booklet, page in product((1, 2, 3), (1, 2, 3, 4))
        ]

    @pytest.mark.parametrize("rotate", [90, 180, 270])
    def test_the_halves_of_a_turned_page_are_those_of_what_is_displayed(self, tmp_path: Path, rotate: int) -> None:
        def turn(pdf: pikepdf.Pdf) -> None:
            """Turn the picture one way and the page the other, with a box that does not start at 0 0."""
            for page in pdf.pages:
                width, height = 1190.56, 841.89
                sides = (width, height) if rotate == 180 else (height, width)
                matrix = {
                    90: f"0 {width} -{height} 0 {height + 30} 40",
                    180: f"-{width} 0 0 -{height} {width + 30} {height + 40}",
                    270: f"0 -{width} {height} 0 30 {width + 40}",
                }[rotate]
                page.obj.Contents = pdf.make_stream(f"q {matrix} cm /Scan Do Q".encode())
                page.obj.MediaBox = pikepdf.Array([0, 0, sides[0] + 100, sides[1] + 100])
                page.obj.CropBox = pikepdf.Array([30, 40, sides[0] + 30, sides[1] + 40])
                page.obj.Rotate = rotate

        a3_booklets(tmp_path / "plain.pdf", document=9, booklets=1)
        altered(tmp_path / "plain.pdf", tmp_path / "source.pdf", turn)
        wanted = [str(Label(9, 1, page)) for page in (1, 2, 3, 4)]
        for pages_per_booklet in (4, 2):  # shared, then really cropped
            plan, copies = cut(tmp_path, "source.pdf", Mode.A3_TO_A4, pages_per_booklet)
            shown = [
                str(read_label(rendered(tmp_path / copy["file"], index, 72)))
                for copy in copies
                for index in range(copy["page_count"])
            ]
            assert shown == wanted
            pictures = page_pictures(tmp_path, pages=[page for copy in requests(plan) for page in copy])
            assert [label_of(tmp_path / picture["file"]) for picture in pictures] == wanted

    def test_a_sheet_of_two_copies_is_really_cut_without_loss(self, tmp_path: Path) -> None:
        a3_booklets(tmp_path / "source.pdf", document=8, booklets=1)
        _, copies = cut(tmp_path, "source.pdf", Mode.A3_TO_A4, 2)
        assert [[page["cropped"] for page in copy["pages"]] for copy in copies] == [[True, True], [True, True]]
        scans = image_hashes(tmp_path / "source.pdf")
        for copy in copies:
            require_sound(tmp_path / copy["file"])
            assert not image_hashes(tmp_path / copy["file"]) & scans
        with pikepdf.open(tmp_path / "source.pdf") as pdf, pikepdf.open(tmp_path / copies[0]["file"]) as first:
            sheet = codec.decode(pdf.pages[0].Resources.XObject.Scan.read_raw_bytes())
            part = first.pages[0].Resources.XObject.Im0
            pixels = np.frombuffer(part.read_bytes(), np.uint8).reshape(int(part.Height), int(part.Width), 3)
        assert np.array_equal(pixels, sheet[:, sheet.shape[1] // 2 :])

    def test_resources_shared_by_all_pages_drag_no_other_copy_in(self, booklet: Path) -> None:
        target = altered(booklet, booklet.with_name("shared.pdf"), share_resources)
        _, copies = cut(target.parent, target.name, Mode.A4_SINGLE, 1)
        seen: set[str] = set()
        for number, copy in enumerate(copies):
            path = target.parent / copy["file"]
            require_sound(path)
            assert read_label(rendered(path, 0, 72)) == Label(3, number // 2 + 1, number % 2 + 1)
            hashes = image_hashes(path)
            assert len(hashes) == 1
            assert not hashes & seen
            seen |= hashes

    def test_a_repeated_attempt_gives_the_same_bytes(self, tmp_path: Path) -> None:
        a3_booklets(tmp_path / "source.pdf", document=5, booklets=2)
        hashes = [
            [copy["sha256"] for copy in cut(tmp_path, "source.pdf", Mode.A3_TO_A4, size)[1]] for size in (4, 4, 2, 2)
        ]
        assert hashes[0] == hashes[1]
        assert hashes[2] == hashes[3]

    def test_a_person_may_turn_and_reorder_pages(self, booklet: Path) -> None:
        wanted = [{"index": 3}, {"index": 0, "rotate": 180}]
        [copy] = cut_copies(booklet.parent, copies=[wanted], clean=True)
        path = booklet.parent / copy["file"]
        assert not copy["verbatim"]
        assert read_label(rendered(path, 0, 72)) == Label(3, 2, 2)
        assert read_label(rendered(path, 1, 72).rotate(180)) == Label(3, 1, 1)
        turned = page_pictures(booklet.parent, pages=wanted)[1]
        assert read_label(Image.open(booklet.parent / turned["file"]).rotate(180)) == Label(3, 1, 1)


# -- what a picture shows


class TestPictures:
    def test_a_scan_is_shown_by_its_own_bytes_and_masked_by_paint(self, booklet: Path) -> None:
        made = page_pictures(booklet.parent, pages=[{"index": 0, "mask": 0.25}, {"index": 1}])
        with pikepdf.open(booklet) as pdf:
            raw = [page.Resources.XObject.Scan.read_raw_bytes() for page in pdf.pages]
        for picture, data in zip(made, raw, strict=False):
            assert picture["verbatim"]
            assert (booklet.parent / picture["file"]).read_bytes() == data
            assert picture["sha256"] == hashlib.sha256(data).hexdigest()
        assert "masked_file" not in made[1]
        whole, covered = (np.asarray(Image.open(booklet.parent / made[0][key])) for key in ("file", "masked_file"))
        assert whole.shape == covered.shape
        edge = round(0.25 * whole.shape[0])
        assert np.ptp(covered[: edge - 8]) <= 2
        assert np.ptp(whole[: edge - 8]) > 100
        assert np.abs(whole[edge + 8 :].astype(int) - covered[edge + 8 :]).mean() < 2

    @pytest.mark.parametrize(
        "content",
        [
            "q 595.28 0 0 841.89 0 0 cm /Scan Do Q BT /F1 90 Tf 100 400 Td (VISIBLE) Tj ET",
            "q 595.28 0 0 841.89 0 0 cm /Scan Do Q BT 3 Tr /T3 90 Tf 100 400 Td (a) Tj ET",
            "q 595.28 0 0 841.89 0 0 cm /Scan Do Q 0 0 0 rg 100 400 300 90 re f",
            "q 0 0 300 900 re W n 595.28 0 0 841.89 0 0 cm /Scan Do Q",
            "q -595.28 0 0 841.89 595.28 0 cm /Scan Do Q",
            "q 500 0 0 800 40 20 cm /Scan Do Q",
            "q 595.28 0 0 841.89 0 0 cm /Scan Do /Scan Do Q",
            "q /Faint gs 595.28 0 0 841.89 0 0 cm /Scan Do Q",
            "/OC /Layer BDC q 595.28 0 0 841.89 0 0 cm /Scan Do Q EMC",
        ],
    )
    def test_any_doubt_means_rendering(self, booklet: Path, content: str) -> None:
        def change(pdf: pikepdf.Pdf) -> None:
            page = pdf.pages[0].obj
            helvetica = pikepdf.Dictionary(
                Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Helvetica
            )
            drawn = pikepdf.Dictionary(
                Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type3, FontBBox=[0, 0, 1, 1],
                FontMatrix=[1, 0, 0, 1, 0, 0], Resources=pikepdf.Dictionary(),
                CharProcs=pikepdf.Dictionary(a=pdf.make_stream(b"1 0 d0 0 0 1 1 re f")), FirstChar=97, LastChar=97,
                Widths=[1], Encoding=pikepdf.Dictionary(Differences=[97, pikepdf.Name.a]),
            )  # fmt: skip
            page.Resources.Font = pikepdf.Dictionary(F1=helvetica, T3=drawn)
            page.Resources.ExtGState = pikepdf.Dictionary(Faint=pikepdf.Dictionary(ca=0.3))
            page.Contents = pdf.make_stream(content.encode())

        target = altered(booklet, booklet.with_name("doubt.pdf"), change)
        [picture] = page_pictures(target.parent, source=target.name, pages=[{"index": 0}])
        assert not picture["verbatim"]
        assert (picture["width"], picture["height"]) == (1241, 1754)
        assert difference(Image.open(target.parent / picture["file"]), rendered(target, 0)) < 3

    def test_an_invisible_text_layer_raises_no_doubt(self, booklet: Path) -> None:
        def change(pdf: pikepdf.Pdf) -> None:
            font = pikepdf.Dictionary(Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Courier)
            pdf.pages[0].obj.Resources.Font = pikepdf.Dictionary(F1=font)
            text = b"BT 3 Tr /F1 9 Tf 50 700 Td (read by a scanner) Tj ET"
            pdf.pages[0].obj.Contents = pdf.make_stream(b"q 595.28 0 0 841.89 0 0 cm /Scan Do Q " + text)

        target = altered(booklet, booklet.with_name("text.pdf"), change)
        assert page_pictures(target.parent, source=target.name, pages=[{"index": 0}])[0]["verbatim"]

    @pytest.mark.parametrize("key", ["SMask", "Decode", "DecodeParms"])
    def test_a_jpeg_that_a_pdf_shows_otherwise_is_rendered(self, booklet: Path, key: str) -> None:
        def change(pdf: pikepdf.Pdf) -> None:
            image = pdf.pages[0].obj.Resources.XObject.Scan
            image[f"/{key}"] = {
                "SMask": pdf.make_stream(
                    b"\x40", Type=pikepdf.Name.XObject, Subtype=pikepdf.Name.Image, Width=1, Height=1,
                    BitsPerComponent=8, ColorSpace=pikepdf.Name.DeviceGray,
                ),
                "Decode": pikepdf.Array([1, 0, 1, 0, 1, 0]),
                "DecodeParms": pikepdf.Dictionary(ColorTransform=0),
            }[key]  # fmt: skip

        target = altered(booklet, booklet.with_name("odd.pdf"), change)
        assert not page_pictures(target.parent, source=target.name, pages=[{"index": 0}])[0]["verbatim"]

    def test_a_huge_page_is_scaled_down_and_says_so(self, booklet: Path) -> None:
        def enlarge(pdf: pikepdf.Pdf) -> None:
            pdf.pages[0].obj.MediaBox = pikepdf.Array([0, 0, 9000, 9000])

        target = altered(booklet, booklet.with_name("huge.pdf"), enlarge)
        [picture] = page_pictures(target.parent, source=target.name, pages=[{"index": 0}])
        assert picture["scaled_down"]
        assert 38_000_000 < picture["width"] * picture["height"] <= 40_100_000

    def test_a_page_that_fails_is_named_and_the_others_are_made(self, booklet: Path) -> None:
        made = page_pictures(booklet.parent, pages=[{"index": 0}, {"index": 77}, {"index": 3}])
        assert [picture["ok"] for picture in made] == [True, False, True]
        assert made[1]["reason"] == "CORRUPTED_PDF"
        assert "78" in made[1]["message"]

    def test_blank_pages_are_told_from_one_short_word(self) -> None:
        paper = Image.new("RGB", (1240, 1754), (246, 244, 236))
        for y in range(100, 1700, 60):
            paper.paste((196, 210, 235), (60, y, 1180, y + 2))
        written = paper.copy()
        written.paste(draw_page(Label(1, 1, 1)).crop((100, 270, 330, 330)), (300, 500))
        small = paper.copy()
        for x in range(300, 420, 20):
            small.paste((40, 40, 120), (x, 600, x + 5, 630))
        verdicts = [codec.is_blank(np.asarray(page)) for page in (paper, written, small)]
        assert verdicts == [True, False, False]

    def test_smaller_copies(self, booklet: Path) -> None:
        [picture] = page_pictures(booklet.parent, pages=[{"index": 2}])
        small = scaled(booklet.parent, picture=picture["file"], width=300)
        assert (small["width"], small["verbatim"]) == (300, False)
        assert difference(Image.open(booklet.parent / small["file"]), rendered(booklet, 2)) < 4
        same = scaled(booklet.parent, picture=picture["file"], width=4000)
        assert (same["file"], same["verbatim"], same["sha256"]) == (picture["file"], True, picture["sha256"])
