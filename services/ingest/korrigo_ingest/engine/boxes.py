"""Geometry of a page: its box, its rotation, and where a part of the displayed page lies in user space.

The same rules as PDFium, so that cuts and pictures agree: the box is CropBox within MediaBox; a box that is absent,
degenerate or not made of numbers is US Letter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pikepdf

Rect = tuple[float, float, float, float]
"""x0, y0, x1, y1."""

LETTER: Rect = (0.0, 0.0, 612.0, 792.0)
WHOLE: Rect = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class PageBox:
    """A page's visible box in user space units, its rotation (0, 90, 180, 270 clockwise) and its user unit."""

    rect: Rect
    rotate: int
    user_unit: float
    is_sound: bool
    """False when a box had to be guessed or cut down to the MediaBox."""

    @property
    def width(self) -> float:
        """Width as displayed, in points."""
        return (self._height_units if self.rotate % 180 else self._width_units) * self.user_unit

    @property
    def height(self) -> float:
        """Height as displayed, in points."""
        return (self._width_units if self.rotate % 180 else self._height_units) * self.user_unit

    @property
    def _width_units(self) -> float:
        return self.rect[2] - self.rect[0]

    @property
    def _height_units(self) -> float:
        return self.rect[3] - self.rect[1]

    @property
    def longest_units(self) -> float:
        """Longest side in user space units, which is what the 14 400 limit of the format counts."""
        return max(self._width_units, self._height_units)

    def part(self, clip: Rect) -> Rect:
        """Map a clip (fractions of the displayed page, y down) to user space, whatever the rotation."""
        u0, v0, u1, v1 = clip
        x0, y0 = self.rect[0], self.rect[1]
        # fractions of the box along user x and user y, both growing
        along_x, along_y = {
            0: ((u0, u1), (1 - v1, 1 - v0)),
            90: ((v0, v1), (u0, u1)),
            180: ((1 - u1, 1 - u0), (v0, v1)),
            270: ((1 - v1, 1 - v0), (1 - u1, 1 - u0)),
        }[self.rotate]
        return (
            x0 + along_x[0] * self._width_units,
            y0 + along_y[0] * self._height_units,
            x0 + along_x[1] * self._width_units,
            y0 + along_y[1] * self._height_units,
        )


def page_box(page: pikepdf.Dictionary) -> PageBox:
    """Read the box of a page dictionary (inherited values must have been filled in)."""
    media, is_media_sound = _media_box(page)
    crop = read_rect(page.get("/CropBox"))
    rect, is_sound = media, is_media_sound
    if crop is not None:
        inside = (max(crop[0], media[0]), max(crop[1], media[1]), min(crop[2], media[2]), min(crop[3], media[3]))
        if _has_area(inside):
            rect = inside
        else:
            is_sound = False
    elif "/CropBox" in page:
        is_sound = False
    rotate = _number(page.get("/Rotate")) or 0.0
    user_unit = _number(page.get("/UserUnit")) or 1.0
    return PageBox(rect, round(rotate / 90) * 90 % 360, user_unit if 0 < user_unit <= 75_000 else 1.0, is_sound)


def _media_box(page: pikepdf.Dictionary) -> tuple[Rect, bool]:
    media = read_rect(page.get("/MediaBox"))
    return (media, True) if media is not None else (LETTER, False)


def read_rect(value: Any) -> Rect | None:
    """Read four numbers as a rectangle with growing corners; None when it is none or has no area."""
    if not isinstance(value, pikepdf.Array) or len(value) != 4:
        return None
    numbers = [_number(item) for item in value.as_list()]
    if any(number is None for number in numbers):
        return None
    x0, y0, x1, y1 = (float(number or 0) for number in numbers)
    rect = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return rect if _has_area(rect) else None


def _has_area(rect: Sequence[float]) -> bool:
    return rect[2] - rect[0] > 0 and rect[3] - rect[1] > 0


def _number(value: Any) -> float | None:
    """Convert a PDF number; None for anything else, booleans and infinities included."""
    if value is None or isinstance(value, (bool, str, bytes, pikepdf.Object)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
