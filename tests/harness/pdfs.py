"""Small scan-like PDFs, made by the program: each page is one JPEG with its label drawn large.

Used where the shared corpora are not at hand. A label is a text such as `B03-P2` in the middle of the page and, as
a machine-readable twin, a row of black and white squares, so that a test can read back from any rendering which
page it sees and whether it stands upright (`read_label`).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pikepdf
from PIL import Image, ImageDraw, ImageFont

A4_POINTS = (595.28, 841.89)
DPI = 60
_BITS = 24
# the squares lie between these fractions of the page, in a band near its middle
_BAND = (0.08, 0.92, 0.62, 0.68)


@dataclass(frozen=True, slots=True)
class Label:
    """Which page of which booklet (both from 1) of which document (0..255)."""

    document: int
    booklet: int
    page: int

    def __str__(self) -> str:
        return f"D{self.document}-B{self.booklet:02d}-P{self.page}"

    @property
    def bits(self) -> list[int]:
        """Eight bits of document, six of booklet, six of page, four of check."""
        number = (self.document & 255) << 12 | (self.booklet & 63) << 6 | (self.page & 63)
        code = number << 4 | zlib.crc32(number.to_bytes(4, "big")) & 15
        return [code >> (_BITS - 1 - i) & 1 for i in range(_BITS)]

    @classmethod
    def from_bits(cls, bits: Sequence[int]) -> Label | None:
        """Decode; None when the check does not hold."""
        code = int("".join(map(str, bits)), 2)
        number = code >> 4
        if zlib.crc32(number.to_bytes(4, "big")) & 15 != code & 15:
            return None
        return cls(number >> 12, number >> 6 & 63, number & 63)


def draw_page(label: Label, *, header: bool = False) -> Image.Image:
    """Draw one A4 page at 60 dpi: paper, ruling, label, squares, identity box on request."""
    width, height = (round(side / 72 * DPI) for side in A4_POINTS)
    page = Image.new("RGB", (width, height), (250, 248, 240))
    pen = ImageDraw.Draw(page)
    for y in range(height // 8, height, height // 30):
        pen.line((20, y, width - 20, y), fill=(200, 214, 235))
    if header:
        pen.rectangle((30, 20, width - 30, height // 7), outline=(20, 20, 20), width=2)
        pen.text((45, 30), "NOM :        PRENOM :", fill=(20, 20, 20), font=ImageFont.load_default(16))
    pen.text((width * 0.2, height * 0.4), str(label), fill=(15, 15, 120), font=ImageFont.load_default(48))
    left, right, top, bottom = _BAND
    step = (right - left) / (_BITS + 2)
    for i, bit in enumerate([1, *label.bits, 0]):
        box = ((left + i * step) * width, top * height, (left + (i + 1) * step) * width, bottom * height)
        pen.rectangle(box, fill=(0, 0, 0) if bit else (255, 255, 255))
    return page


def read_label(picture: Image.Image) -> Label | None:
    """Read the squares of a displayed page; None when it is blank, upside down or another page's half."""
    grey = picture.convert("L")
    left, right, top, bottom = _BAND
    step = (right - left) / (_BITS + 2)
    y = round((top + bottom) / 2 * grey.height)

    def square(i: int) -> int:
        x = round((left + (i + 0.5) * step) * grey.width)
        return int(grey.crop((x, y, x + 1, y + 1)).tobytes()[0] < 128)

    bits = [square(i) for i in range(_BITS + 2)]
    if bits[0] != 1 or bits[-1] != 0:
        return None
    return Label.from_bits(bits[1:-1])


def _jpeg(page: Image.Image) -> bytes:
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def _add_page(pdf: pikepdf.Pdf, picture: Image.Image, size: tuple[float, float]) -> None:
    image = pikepdf.Stream(pdf, _jpeg(picture))
    for key, value in {
        "/Type": pikepdf.Name.XObject,
        "/Subtype": pikepdf.Name.Image,
        "/Width": picture.width,
        "/Height": picture.height,
        "/ColorSpace": pikepdf.Name.DeviceRGB,
        "/BitsPerComponent": 8,
        "/Filter": pikepdf.Name.DCTDecode,
    }.items():
        image[key] = value
    pdf.add_blank_page(page_size=size)
    page = pdf.pages[-1]
    page.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(Scan=pdf.make_indirect(image)))
    page.Contents = pikepdf.Stream(pdf, f"q {size[0]} 0 0 {size[1]} 0 0 cm /Scan Do Q".encode())


def _write(pdf: pikepdf.Pdf, path: Path) -> Path:
    pdf.save(path, deterministic_id=True)
    return path


def a4_scan(path: Path, labels: Sequence[Label]) -> Path:
    """Write a PDF of A4 pages in the order of the labels."""
    with pikepdf.new() as pdf:
        for label in labels:
            _add_page(pdf, draw_page(label, header=label.page == 1), A4_POINTS)
        return _write(pdf, path)


def a4_booklets(path: Path, *, document: int, booklets: int, pages: int, first: int = 1) -> Path:
    """Write `booklets` x `pages` A4 pages, booklet after booklet, numbered from `first`."""
    return a4_scan(path, [Label(document, b, p) for b in range(first, first + booklets) for p in range(1, pages + 1)])


def a3_booklets(path: Path, *, document: int, booklets: int, first: int = 1) -> Path:
    """Write folded A3 sheets of four pages: recto [P4 | P1], verso [P2 | P3] (domain.md 1.7)."""
    size = (A4_POINTS[0] * 2, A4_POINTS[1])
    with pikepdf.new() as pdf:
        for booklet in range(first, first + booklets):
            for left, right in ((4, 1), (2, 3)):
                sides = [draw_page(Label(document, booklet, number), header=number == 1) for number in (left, right)]
                sheet = Image.new("RGB", (sides[0].width * 2, sides[0].height))
                sheet.paste(sides[0], (0, 0))
                sheet.paste(sides[1], (sides[0].width, 0))
                _add_page(pdf, sheet, size)
        return _write(pdf, path)
