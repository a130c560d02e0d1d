"""Where the text of an annotation goes on its page: beside its box, over nothing else. Pure; called by `overlay`.

Greedy: annotations are placed in reading order, each at the first spot that is free. When no spot is free the
caller puts a numbered marker on the page and the text on the comments page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GAP = 2.5  # points between a box and its text
MARGIN = 6.0  # nothing is written nearer to the edge: printers cut there
_SLIDES = (0.0, 14.0, 30.0, 50.0, 75.0)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """An upright rectangle; points, y down."""

    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.x + self.w

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.y + self.h

    def overlaps(self, other: Rectangle) -> bool:
        """Tell whether the two share an area."""
        return self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom

    def lies_in(self, width: float, height: float) -> bool:
        """Tell whether it keeps the margin on a page of this size."""
        return (
            self.x >= MARGIN - 1e-6
            and self.y >= MARGIN - 1e-6
            and self.right <= width - MARGIN + 1e-6
            and self.bottom <= height - MARGIN + 1e-6
        )


class Page:
    """What is already taken on one page. `hard` must stay readable; `soft` may be covered when there is no choice."""

    def __init__(self, width: float, height: float) -> None:
        self.width = width
        self.height = height
        self.hard: list[Rectangle] = []
        self.soft: list[Rectangle] = []

    def clamp(self, r: Rectangle) -> Rectangle:
        """Return the rectangle moved (not shrunk) into the page's margins."""
        x = max(MARGIN, min(r.x, self.width - MARGIN - r.w))
        y = max(MARGIN, min(r.y, self.height - MARGIN - r.h))
        return Rectangle(x, y, r.w, r.h)

    def is_free(self, r: Rectangle, anchor: Rectangle, *, is_strict: bool) -> bool:
        """Tell whether `r` covers nothing; `is_strict` counts other annotations' boxes too."""
        if not r.lies_in(self.width, self.height) or any(r.overlaps(taken) for taken in self.hard):
            return False
        return not is_strict or not any(r.overlaps(taken) for taken in self.soft if taken != anchor)

    def find(self, anchor: Rectangle, w: float, h: float, *, is_strict: bool) -> Rectangle | None:
        """Return the first free spot of this size near `anchor`, or None."""
        for spot in self._spots(anchor, w, h):
            if self.is_free(spot, anchor, is_strict=is_strict):
                return spot
        return None

    def _spots(self, anchor: Rectangle, w: float, h: float) -> Iterator[Rectangle]:
        left = max(MARGIN, min(anchor.x, self.width - MARGIN - w))
        right = max(MARGIN, anchor.right - w)
        top = max(MARGIN, min(anchor.y, self.height - MARGIN - h))
        if anchor.w * anchor.h > 0.3 * self.width * self.height:  # a box round half the page: write inside it
            x0 = max(MARGIN, anchor.x + GAP)
            x1 = min(self.width - MARGIN, anchor.right - GAP) - w
            y0 = max(MARGIN, anchor.y + GAP)
            y1 = min(self.height - MARGIN, anchor.bottom - GAP) - h
            for slide in _SLIDES:
                yield Rectangle(x1, y0 + slide, w, h)
                yield Rectangle(x0, y0 + slide, w, h)
                yield Rectangle(x1, y1 - slide, w, h)
        for slide in _SLIDES:
            yield Rectangle(left, anchor.bottom + GAP + slide, w, h)
            yield Rectangle(anchor.right + GAP, top + slide, w, h)
            yield Rectangle(left, anchor.y - GAP - h - slide, w, h)
            yield Rectangle(right, anchor.bottom + GAP + slide, w, h)
            yield Rectangle(anchor.x - GAP - w, top + slide, w, h)
            yield Rectangle(right, anchor.y - GAP - h - slide, w, h)


def nearest_points(a: Rectangle, b: Rectangle) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ends of the shortest line between two rectangles (for the line that leads to a far text)."""
    ax, bx = _nearest(a.x, a.right, b.x, b.right)
    ay, by = _nearest(a.y, a.bottom, b.y, b.bottom)
    return (ax, ay), (bx, by)


def _nearest(a0: float, a1: float, b0: float, b1: float) -> tuple[float, float]:
    if a1 < b0:
        return a1, b0
    if b1 < a0:
        return a0, b1
    middle = (max(a0, b0) + min(a1, b1)) / 2
    return middle, middle
