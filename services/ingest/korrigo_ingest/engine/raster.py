"""Render pages by PDFium, within the limits of the sandbox.

Form fields are drawn with what was typed into them. This build of PDFium has no JavaScript, and nothing here asks it
to run the document's actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2

from korrigo_ingest.engine.codec import Pixels
from korrigo_kit.sandbox import EngineError

PIXELS_LIMIT = 40_000_000
"""Pixels of one picture; a larger page is rendered at a lower resolution and flagged."""


@dataclass(frozen=True, slots=True)
class Raster:
    """A rendered page."""

    pixels: Pixels
    dpi: float
    is_scaled_down: bool


@contextmanager
def document(path: Path) -> Iterator[Any]:
    """Open a file in PDFium. Raises EngineError CORRUPTED_PDF."""
    # An open file, not its name: PDFium's binding makes names absolute, which fails in the sandbox.
    with path.open("rb") as stream:
        try:
            opened = pypdfium2.PdfDocument(stream)
            if opened.get_formtype():
                opened.init_forms()
        except pypdfium2.PdfiumError as error:
            raise EngineError("CORRUPTED_PDF", f"the PDF cannot be rendered: {error!s:.200}") from error
        try:
            yield opened
        finally:
            opened.close()


def fitting_dpi(width: float, height: float, dpi: float) -> float:
    """Lower the resolution until a page of this size (points) has no more pixels than allowed."""
    pixels = width * height * (dpi / 72) ** 2
    return dpi if pixels <= PIXELS_LIMIT else dpi * (PIXELS_LIMIT / pixels) ** 0.5


def render(pdf: Any, index: int, dpi: float, *, is_grey: bool = False, user_unit: float = 1.0) -> Raster:
    """Render one page as displayed, at most 40 million pixels. Raises EngineError CORRUPTED_PDF."""
    try:
        page = pdf[index]
        try:
            width, height = page.get_size()
            fitting = fitting_dpi(width * user_unit, height * user_unit, dpi)
            bitmap = page.render(
                scale=fitting / 72 * user_unit,
                grayscale=is_grey,
                rev_byteorder=True,
                limit_image_cache=True,
            )
            pixels = np.array(bitmap.to_numpy(), dtype=np.uint8)
            bitmap.close()
        finally:
            page.close()
    except (pypdfium2.PdfiumError, IndexError, ValueError) as error:
        raise EngineError("CORRUPTED_PDF", f"page {index + 1} cannot be rendered: {error!s:.200}") from error
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Raster(pixels, fitting, fitting < dpi)
