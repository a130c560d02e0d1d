"""What is drawn over one page: boxes, highlights, ink, stamps, and the texts beside them.

Called by `append`, once per annotated page. Text is never cut and never leaves the page: when there is no room
beside its box it goes to the comments page, and the box gets a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from korrigo_render.engine.canvas import MARKER, SOLID, TINT, VEIL, Block, Canvas, Colour, Inks, Style, baseline
from korrigo_render.engine.labels import delta
from korrigo_render.engine.manifest import Annotation, Stroke
from korrigo_render.engine.place import MARGIN, Page, Rectangle, nearest_points
from korrigo_render.engine.source import View

_RED: Colour = (0.80, 0.08, 0.13)
_GREEN: Colour = (0.04, 0.45, 0.20)
_YELLOW: Colour = (1.0, 0.88, 0.10)
_WHITE: Colour = (1.0, 1.0, 1.0)
# Lines and text of each type; HIGHLIGHT's text is a dark amber, as yellow letters cannot be read.
COLOURS: dict[str, Colour] = {
    "COMMENT": (0.08, 0.28, 0.72),
    "HIGHLIGHT": (0.48, 0.34, 0.0),
    "ERROR": _RED,
    "BONUS": _GREEN,
    "TEXT": _RED,
    "INK": _RED,
    "STAMP": _RED,
}
_STAMPS: dict[str, tuple[str, Colour]] = {
    "✓": ("✓", _GREEN),
    "✔": ("✓", _GREEN),
    "✗": ("✗", _RED),
    "✘": ("✗", _RED),
    "?": ("?", (0.80, 0.42, 0.0)),
}
_LONGEST_STAMP_WORD = 14  # "Vu", "TB", "À revoir": drawn in the box; anything longer is a comment
_NOTE = Style(size=8.2)
_HEAD = Style(size=8.2, is_bold=True)
_TEXT = Style(size=9.5)
_NOTE_WIDTHS = (165.0, 240.0, 110.0)
_TALLEST_NOTE = 0.30  # of the page; a longer text would hide too much of the script
_PADDING = 2.5
_BAR = 1.5
_DOT = 6.2
# Widths of pen lines, in design points: what a fraction of the page's width gives is kept within these.
_PEN = (0.4, 12.0)
_SIMPLER = 0.12  # a pen line may move by this much (points) when dense points are thinned out
_SMALLEST_BOX = 5.0


@dataclass(frozen=True, slots=True)
class Moved:
    """A text that found no room: `number` is the marker on the page."""

    number: int
    page_index: int
    head: str
    text: str
    colour: Colour


class Overlay:
    """Draws the annotations of one page; `first_number` is the next free marker number."""

    def __init__(self, inks: Inks, view: View, language: str, first_number: int) -> None:
        self.canvas = Canvas(inks, view.width, view.height)
        self.moved: list[Moved] = []
        self._page = Page(view.width, view.height)
        self._language = language
        self._number = first_number

    def draw(self, annotations: Sequence[Annotation]) -> None:
        """Draw all annotations of the page, marks first, then the texts around them."""
        ordered = sorted(annotations, key=lambda a: (round(a.y, 3), a.x, a.id))
        boxes = {a.id: self._box(a) for a in ordered}
        for a in ordered:
            if a.type == "HIGHLIGHT":
                self._highlight(boxes[a.id])
        for a in ordered:
            self._mark(a, boxes[a.id])
        for a in ordered:
            if a.type == "TEXT":
                self._free_text(a, boxes[a.id])
        for a in ordered:
            if a.type != "TEXT":
                self._note(a, boxes[a.id])

    def _box(self, a: Annotation) -> Rectangle:
        """Return the annotation's box in points, inside the page, never too small to be seen."""
        width, height = self.canvas.width, self.canvas.height
        w, h = max(a.w * width, _SMALLEST_BOX), max(a.h * height, _SMALLEST_BOX)
        return Rectangle(max(0.0, min(a.x * width, width - w)), max(0.0, min(a.y * height, height - h)), w, h)

    def _highlight(self, box: Rectangle) -> None:
        self.canvas.use(MARKER)
        self.canvas.fill_rectangle(box.x, box.y, box.w, box.h, _YELLOW)
        self._page.soft.append(box)

    def _mark(self, a: Annotation, box: Rectangle) -> None:
        canvas = self.canvas
        if a.type in ("COMMENT", "ERROR", "BONUS"):
            canvas.use(TINT)
            canvas.fill_rectangle(box.x, box.y, box.w, box.h, COLOURS[a.type])
            canvas.use(SOLID)
            canvas.stroke_rectangle(box.x, box.y, box.w, box.h, COLOURS[a.type], 1.2)
            self._page.soft.append(box)
        elif a.type == "INK":
            canvas.use(SOLID)
            for stroke in a.strokes:
                self._stroke(stroke)
            self._page.soft.append(box)
        elif a.type == "STAMP":
            canvas.use(SOLID)
            self._page.hard.append(self._stamp(a, box))

    def _stroke(self, stroke: Stroke) -> None:
        width, height = self.canvas.width, self.canvas.height
        pen = stroke.width * width
        has_pressure = any(p[2] != 1.0 for p in stroke.points)
        run: list[tuple[float, float]] = []
        run_width = 0.0
        for x, y, pressure in stroke.points:
            # Pressure 0..1 in eight steps: half to one and a half times the pen; few widths keep the stream short.
            step = round(min(max(pressure, 0.0), 1.0) * 8) / 8 if has_pressure else 0.5
            line = min(max(pen * (0.5 + step), _PEN[0]), _PEN[1])
            point = (x * width, y * height)
            if run and line != run_width:
                self.canvas.line(thin_out([*run, point], _SIMPLER), COLOURS["INK"], run_width)
                run = []
            run.append(point)
            run_width = line
        if run:
            self.canvas.line(thin_out(run, _SIMPLER), COLOURS["INK"], run_width)

    def _stamp(self, a: Annotation, box: Rectangle) -> Rectangle:
        """Draw the sign (or the word) as large as the box allows, in its middle; return what it covers."""
        word, colour = stamp_of(a)
        style = Style(size=1.0, colour=colour, is_bold=len(word) > 1 or word == "?", stretch=100)
        face = self.canvas.inks.font(style, word)[1].face
        if len(word) == 1:
            x0, y0, x1, y1 = face.glyph_box(word)
        else:
            x0, y0, x1, y1 = 0.0, -0.2, face.width(word), 0.76
        size = max(min(box.w / (x1 - x0), box.h / (y1 - y0)), 11.0)
        w, h = size * (x1 - x0), size * (y1 - y0)
        r = self._page.clamp(Rectangle(box.x + (box.w - w) / 2, box.y + (box.h - h) / 2, w, h))
        self.canvas.text(r.x - size * x0, r.bottom + size * y0, word, replace(style, size=size))
        return r

    def _free_text(self, a: Annotation, box: Rectangle) -> None:
        """Write a TEXT where its box is; it may grow to the right edge and down, and moves up when it must."""
        head = self._head(a)
        text = "  ".join(part for part in (head, a.content) if part)
        if not text:
            return
        room = self.canvas.width - MARGIN - box.x
        width = min(max(box.w, 60.0), room) if room >= 60.0 else 60.0
        style = replace(_TEXT, colour=COLOURS["TEXT"])
        block = self.canvas.inks.block(text, style, width)
        if block.height > box.h:  # rather wider than the box than far below it
            block = self.canvas.inks.block(text, style, max(width, min(room, 240.0)))
        spot = self._page.clamp(Rectangle(box.x, box.y, block.width, block.height))
        if not spot.lies_in(self.canvas.width, self.canvas.height) or self._is_taken(spot):
            self._move_away(a, box, head, a.content)
            return
        self.canvas.use(VEIL)
        self.canvas.fill_rectangle(spot.x - 1, spot.y, spot.w + 2, spot.h, _WHITE)
        self.canvas.use(SOLID)
        self.canvas.block(spot.x, spot.y, block)
        self._page.hard.append(spot)

    def _is_taken(self, spot: Rectangle) -> bool:
        return any(spot.overlaps(taken) for taken in self._page.hard)

    def _head(self, a: Annotation) -> str:
        parts = [delta(a.score_delta_hundredths, self._language)] if a.score_delta_hundredths else []
        if a.question_label and (parts or a.content):
            parts.append(f"({a.question_label})" if parts else a.question_label)
        return " ".join(parts)

    def _note(self, a: Annotation, box: Rectangle) -> None:
        head = self._head(a)
        content = "" if a.type == "STAMP" and stamp_of(a)[0] == a.content else _without_stamp(a)
        if not head and not content:
            return
        colour = stamp_of(a)[1] if a.type == "STAMP" else COLOURS[a.type]
        for is_strict in (True, False):
            for width in _NOTE_WIDTHS:
                blocks = self._blocks(head, content, colour, width)
                w, h = max(b.width for b in blocks), sum(b.height for b in blocks)
                if h > _TALLEST_NOTE * self.canvas.height:
                    continue
                spot = self._page.find(box, w + 2 * _PADDING + _BAR, h + 2 * _PADDING, is_strict=is_strict)
                if spot is not None:
                    self._draw_note(spot, box, blocks, colour)
                    return
        self._move_away(a, box, head, content)

    def _blocks(self, head: str, content: str, colour: Colour, width: float) -> list[Block]:
        inks = self.canvas.inks
        parts = [(head, _HEAD)] * bool(head) + [(content, _NOTE)] * bool(content)
        return [inks.block(text, replace(style, colour=colour), width) for text, style in parts]

    def _draw_note(self, spot: Rectangle, box: Rectangle, blocks: list[Block], colour: Colour) -> None:
        canvas = self.canvas
        canvas.use(SOLID)
        start, end = nearest_points(box, spot)
        if math.dist(start, end) > 4.0:
            canvas.line([start, end], colour, 0.6)
        canvas.use(VEIL)
        canvas.fill_rectangle(spot.x, spot.y, spot.w, spot.h, _WHITE)
        canvas.use(SOLID)
        canvas.fill_rectangle(spot.x, spot.y, _BAR, spot.h, colour)
        y = spot.y + _PADDING
        for block in blocks:
            canvas.block(spot.x + _BAR + _PADDING, y, block)
            y += block.height
        self._page.hard.append(spot)

    def _move_away(self, a: Annotation, box: Rectangle, head: str, text: str) -> None:
        """Put a numbered dot at a corner of the box; the text is set on the comments page."""
        colour = COLOURS[a.type]
        corners = ((box.right, box.y), (box.x, box.y), (box.right, box.bottom), (box.x, box.bottom))
        dots = [
            self._page.clamp(Rectangle(x + dx - _DOT, y - _DOT, 2 * _DOT, 2 * _DOT))
            for dx in (0.0, 2.2 * _DOT, -2.2 * _DOT, 4.4 * _DOT)
            for x, y in corners
        ]
        dot = next((d for d in dots if not self._is_taken(d)), dots[0])
        self._page.hard.append(dot)
        style = Style(size=7.0, colour=_WHITE, is_bold=True)
        number = str(self._number)
        self.canvas.use(SOLID)
        x, y = dot.x + _DOT, dot.y + _DOT
        self.canvas.fill_circle(x, y, _DOT, colour)
        self.canvas.text(
            x - self.canvas.inks.width(style, number) / 2,
            dot.y + _DOT - style.step / 2 + baseline(style),
            number,
            style,
        )
        self.moved.append(Moved(self._number, a.page_index, head, text, colour))
        self._number += 1


def stamp_of(a: Annotation) -> tuple[str, Colour]:
    """Return the sign or short word of a STAMP, and its colour; a longer text gets a question mark and a note."""
    if a.content[:1] in _STAMPS and not a.content[1:2].isalnum():
        return _STAMPS[a.content[0]]
    if 0 < len(a.content) <= _LONGEST_STAMP_WORD and "\n" not in a.content:
        return a.content, COLOURS["STAMP"]
    return _STAMPS["?"]


def _without_stamp(a: Annotation) -> str:
    """Return what is left to be written beside the mark."""
    if a.type == "STAMP" and a.content[:1] in _STAMPS and not a.content[1:2].isalnum():
        return a.content[1:].strip()
    return a.content


def thin_out(points: Sequence[tuple[float, float]], tolerance: float) -> list[tuple[float, float]]:
    """Return the line with fewer points, nowhere further than `tolerance` from the old one (Douglas-Peucker)."""
    if len(points) < 3:
        return list(points)
    keep = {0, len(points) - 1}
    stack = [(0, len(points) - 1)]
    while stack:
        first, last = stack.pop()
        worst, at = tolerance, -1
        for i in range(first + 1, last):
            distance = _distance(points[i], points[first], points[last])
            if distance > worst:
                worst, at = distance, i
        if at > 0:
            keep.add(at)
            stack += [(first, at), (at, last)]
    return [points[i] for i in sorted(keep)]


def _distance(p: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the distance of `p` from the segment a-b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = dx * dx + dy * dy
    t = 0.0 if length == 0 else min(1.0, max(0.0, ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / length))
    return math.dist(p, (a[0] + t * dx, a[1] + t * dy))
