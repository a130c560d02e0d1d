"""Drawing: a content stream in design points, origin top left, y down; and the styles of text.

Called by `overlay` and `score_page`. Every surface of one PDF shares one `Inks` (fonts, graphics states, one
resources object), so a page costs only its own strokes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from korrigo_render.engine.font import Embedded, faces
from korrigo_render.engine.update import Update
from korrigo_render.engine.wrap import wrap

Colour = tuple[float, float, float]
_CIRCLE = 0.5523  # control point distance of a quarter circle drawn as a Bezier curve

# Graphics states by name: (fill and stroke opacity, blend mode).
_STATES = {"N": (1.0, "Normal"), "M": (0.5, "Multiply"), "T": (0.10, "Multiply"), "W": (0.68, "Normal")}
SOLID, MARKER, TINT, VEIL = "N", "M", "T", "W"


@dataclass(frozen=True, slots=True)
class Style:
    """How text is set. `stretch` is horizontal scaling in per cent; 90 is what DejaVu Condensed is."""

    size: float
    colour: Colour = (0.0, 0.0, 0.0)
    is_bold: bool = False
    stretch: float = 90.0
    leading: float = 1.25

    @property
    def step(self) -> float:
        """Distance of two base lines, in points."""
        return self.size * self.leading


@dataclass(frozen=True, slots=True)
class Block:
    """Text broken into lines; width and height are what it occupies."""

    lines: tuple[str, ...]
    style: Style
    width: float
    height: float


class Inks:
    """What all surfaces of one PDF share."""

    def __init__(self, update: Update) -> None:
        regular, bold = faces()
        self._fonts = {"F": Embedded(regular), "B": Embedded(bold)}
        self._numbers = {"F": update.reserve(), "B": update.reserve()}
        self.resources = update.reserve()

    def write(self, update: Update) -> None:
        """Write the fonts that were used and the resources object; call once, when everything is drawn."""
        fonts = ""
        for key, font in self._fonts.items():
            if font.is_used:
                font.write(update, self._numbers[key])
                fonts += f"/{key} {self._numbers[key]} 0 R"
        states = "".join(f"/{k}<</ca {_n(a)}/CA {_n(a)}/BM/{mode}>>" for k, (a, mode) in _STATES.items())
        update.put(self.resources, f"<</Font<<{fonts}>>/ExtGState<<{states}>>>>")

    def font(self, style: Style, text: str) -> tuple[str, Embedded]:
        """Choose the face: bold only when it has every character."""
        key = "B" if style.is_bold and self._fonts["B"].face.covers(text) else "F"
        return key, self._fonts[key]

    def width(self, style: Style, text: str) -> float:
        """Return the width of one line in points."""
        return self.font(style, text)[1].face.width(text) * style.size * style.stretch / 100

    def block(self, text: str, style: Style, width: float) -> Block:
        """Break `text` to `width`; the block is as wide as its longest line."""
        if style.is_bold and not self._fonts["B"].face.covers(text.replace("\n", "").replace("\t", "")):
            style = replace(style, is_bold=False)
        key = "B" if style.is_bold else "F"
        face, factor = self._fonts[key].face, style.size * style.stretch / 100
        lines = wrap(text, width / factor, face.width)
        return Block(tuple(lines), style, max(map(face.width, lines)) * factor, len(lines) * style.step)


class Canvas:
    """One surface. Coordinates: points from the top left corner, y down."""

    def __init__(self, inks: Inks, width: float, height: float) -> None:
        self.inks = inks
        self.width = width
        self.height = height
        self._out: list[str] = []
        self._state = SOLID

    def content(self) -> bytes:
        """Return the content stream."""
        return "\n".join(self._out).encode("ascii")

    def use(self, state: str) -> None:
        """Switch the graphics state (opacity and blend mode)."""
        if state != self._state:
            self._out.append(f"/{state} gs")
            self._state = state

    def fill_rectangle(self, x: float, y: float, w: float, h: float, colour: Colour) -> None:
        """Fill an upright rectangle."""
        self._out.append(f"{_rgb(colour)} rg {self._rectangle(x, y, w, h)} f")

    def stroke_rectangle(self, x: float, y: float, w: float, h: float, colour: Colour, line: float) -> None:
        """Outline an upright rectangle; the line lies inside it."""
        inner = self._rectangle(x + line / 2, y + line / 2, max(w - line, 0.1), max(h - line, 0.1))
        self._out.append(f"{_rgb(colour)} RG {_n(line)} w 1 j {inner} S")

    def _rectangle(self, x: float, y: float, w: float, h: float) -> str:
        return f"{_n(x)} {_n(self.height - y - h)} {_n(w)} {_n(h)} re"

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """Draw a polyline with round ends; a single point becomes a dot."""
        path = [f"{_n(x)} {_n(self.height - y)} {'l' if i else 'm'}" for i, (x, y) in enumerate(points)]
        if len(points) == 1:
            path.append(path[0].replace(" m", " l"))
        self._out.append(f"{_rgb(colour)} RG {_n(width)} w 1 J 1 j {' '.join(path)} S")

    def fill_circle(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a circle around (x, y)."""
        y = self.height - y
        c = radius * _CIRCLE
        r = radius
        quarters = [
            (x + r, y + c, x + c, y + r, x, y + r),
            (x - c, y + r, x - r, y + c, x - r, y),
            (x - r, y - c, x - c, y - r, x, y - r),
            (x + c, y - r, x + r, y - c, x + r, y),
        ]
        curves = " ".join(" ".join(map(_n, q)) + " c" for q in quarters)
        self._out.append(f"{_rgb(colour)} rg {_n(x + r)} {_n(y)} m {curves} f")

    def text(self, x: float, y: float, line: str, style: Style) -> None:
        """Set one line; `y` is its base line."""
        if line:
            key, font = self.inks.font(style, line)
            self._out.append(f"{self._text_head(x, y, style, key)} <{font.encode(line)}> Tj ET")

    def text_right(self, x: float, y: float, line: str, style: Style) -> None:
        """Set one line that ends at `x`."""
        self.text(x - self.inks.width(style, line), y, line, style)

    def block(self, x: float, y: float, block: Block) -> None:
        """Set a block whose top left corner is (x, y)."""
        style = block.style
        key, font = self.inks.font(style, "".join(block.lines))
        shown = " T* ".join(f"<{font.encode(line)}> Tj" if line else "" for line in block.lines)
        head = self._text_head(x, y + baseline(style), style, key)
        self._out.append(f"{head} {_n(style.step)} TL {shown} ET")

    def _text_head(self, x: float, y: float, style: Style, key: str) -> str:
        return (
            f"{_rgb(style.colour)} rg BT /{key} {_n(style.size)} Tf {_n(style.stretch)} Tz "
            f"{_n(x)} {_n(self.height - y)} Td"
        )


def baseline(style: Style) -> float:
    """Return how far below its top a line's base line is: the letters sit in the middle of the step."""
    return style.step / 2 + style.size * 0.32


def _rgb(colour: Colour) -> str:
    return " ".join(map(_n, colour))


def _n(value: float) -> str:
    """Write a number for a content stream: a hundredth of a point is finer than any printer."""
    return f"{round(value, 2):g}"
