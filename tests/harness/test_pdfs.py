"""The generated scans are what they claim: labels come back from a rendering, in the documented order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pypdfium2
from PIL import Image

from harness.pdfs import Label, a3_booklets, a4_booklets, read_label


def _rendered(path: Path) -> list[Image.Image]:
    with pypdfium2.PdfDocument(path) as document:
        return [page.render(scale=1.0).to_pil() for page in document]


def test_labels_come_back_from_a_rendering(tmp_path: Path) -> None:
    pages = _rendered(a4_booklets(tmp_path / "a4.pdf", document=7, booklets=2, pages=3))
    assert [read_label(page) for page in pages] == [Label(7, b, p) for b in (1, 2) for p in (1, 2, 3)]
    assert read_label(pages[0].rotate(180)) is None


def test_a3_sheets_are_laid_out_as_folded(tmp_path: Path) -> None:
    path = a3_booklets(tmp_path / "a3.pdf", document=9, booklets=1)
    halves = []
    for sheet in _rendered(path):
        middle = sheet.width // 2
        halves += [sheet.crop((0, 0, middle, sheet.height)), sheet.crop((middle, 0, sheet.width, sheet.height))]
    assert [label.page for half in halves if (label := read_label(half))] == [4, 1, 2, 3]
    subprocess.run(["qpdf", "--check", path], check=True, capture_output=True)
