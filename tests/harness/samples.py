"""Makes the sample scans that ship with the product: `python -m harness.samples` (from tests/) writes them again.

They look like scans of hand-written A4 pages: grey paper, a slight turn, uneven lines. Names are invented.
"""

from __future__ import annotations

import io
import random
from pathlib import Path

import pikepdf
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

FOLDER = Path(__file__).resolve().parents[2] / "services" / "embedded" / "korrigo" / "samples"
POINTS = (595.28, 841.89)
DPI = 100
SIZE = (round(POINTS[0] / 72 * DPI), round(POINTS[1] / 72 * DPI))
PUPILS = ("ALMEIRA Noor", "BRUNEL Tao", "CASTELNAU Ines")
ANSWERS = (
    """Exercise 1
Suppose that √2 = p/q, with p and q
without a common divisor.
Then p² = 2q², so p² is even, so p is even:
p = 2k. Then 4k² = 2q², and q² = 2k²
is even too: q is even.
Both are even: a contradiction.

So √2 is irrational.""".splitlines(),
    """Exercise 2
f(x) = x³ − 3x + 1
f'(x) = 3x² − 3 = 3(x − 1)(x + 1)
f' < 0 on ]−1 ; 1[, f' > 0 elsewhere.

f(−1) = 3      f(1) = −1
f grows, falls, grows: three zeros
because f(−2) = −1 < 0 and f(2) = 3 > 0.""".splitlines(),
)


def page(pupil: str, number: int, seed: int) -> Image.Image:
    """Draw one page as a scanner would see it."""
    choose = random.Random(seed)
    paper = Image.new("L", SIZE, 246)
    pen = ImageDraw.Draw(paper)
    for y in range(SIZE[1] // 5, SIZE[1] - 60, 33):
        pen.line((70, y, SIZE[0] - 50, y), fill=218)
    if number == 1:
        pen.rectangle((60, 40, SIZE[0] - 60, 160), outline=90, width=2)
        pen.text((80, 55), "NAME, First name:", fill=90, font=ImageFont.load_default(20))
        pen.text((300, 85), pupil, fill=60, font=ImageFont.load_default(34))
    for at, line in enumerate(ANSWERS[number - 1]):
        _write(paper, line, (85 + choose.randint(-6, 10), 205 + at * 66 + choose.randint(-4, 4)), choose)
    pen.text((SIZE[0] - 90, SIZE[1] - 60), f"{number} / 2", fill=120, font=ImageFont.load_default(20))
    noise = Image.effect_noise(SIZE, 9).point(lambda value: 255 - abs(value - 128))
    paper = ImageChops.multiply(paper, noise).rotate(choose.uniform(-0.5, 0.5), fillcolor=235)
    return paper.filter(ImageFilter.GaussianBlur(0.5))


def _write(paper: Image.Image, line: str, where: tuple[int, int], choose: random.Random) -> None:
    """Write one line with a hand's unsteadiness."""
    ink = Image.new("L", (SIZE[0], 90), 255)
    pen, x = ImageDraw.Draw(ink), 10.0
    font = ImageFont.truetype("DejaVuSans-Oblique.ttf", 27)
    for letter in line:
        pen.text((x, 25 + choose.uniform(-1.5, 1.5)), letter, fill=choose.randint(50, 90), font=font)
        x += pen.textlength(letter, font=font) * choose.uniform(0.94, 1.02)
    ink = ink.rotate(choose.uniform(-0.6, 0.6), fillcolor=255)
    box = (where[0], where[1], where[0] + SIZE[0] - where[0], where[1] + 90)
    paper.paste(ImageChops.multiply(paper.crop(box), ink.crop((0, 0, box[2] - box[0], 90))), box)


def write(path: Path, pictures: list[Image.Image]) -> None:
    """Write pages of one JPEG each."""
    with pikepdf.new() as pdf:
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=50)
            image = pikepdf.Stream(pdf, buffer.getvalue())
            image.Type, image.Subtype = pikepdf.Name.XObject, pikepdf.Name.Image
            image.ColorSpace = pikepdf.Name.DeviceGray
            image.Width, image.Height, image.BitsPerComponent = picture.width, picture.height, 8
            image.Filter = pikepdf.Name.DCTDecode
            pdf.add_blank_page(page_size=POINTS)
            added = pdf.pages[-1]
            added.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(Scan=pdf.make_indirect(image)))
            added.Contents = pikepdf.Stream(pdf, f"q {POINTS[0]} 0 0 {POINTS[1]} 0 0 cm /Scan Do Q".encode())
        pdf.save(path, deterministic_id=True)


def main() -> None:
    """Write `copy.pdf` (one copy) and `booklets.pdf` (three copies of two pages)."""
    copies = [[page(pupil, number, 10 * at + number) for number in (1, 2)] for at, pupil in enumerate(PUPILS)]
    FOLDER.mkdir(exist_ok=True)
    write(FOLDER / "copy.pdf", copies[0])
    write(FOLDER / "booklets.pdf", [picture for copy in copies for picture in copy])


if __name__ == "__main__":
    main()
