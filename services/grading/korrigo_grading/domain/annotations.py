"""What an annotation may be (domain.md 1.5): one validator for create and change, before anything is stored.

Coordinates are fractions of the page as displayed. A client's arithmetic may miss the edge by EPSILON; that much is
clamped, more is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from korrigo_grading.domain import scheme
from korrigo_kit.errors import Invalid

EPSILON = 1e-6
TYPES = ("COMMENT", "HIGHLIGHT", "ERROR", "BONUS", "TEXT", "INK", "STAMP")
# Words of the French client (domain.md 1.5); stored under the canonical name.
ALIASES = {
    "COMMENTAIRE": "COMMENT",
    "SURLIGNAGE": "HIGHLIGHT",
    "SURLIGNE": "HIGHLIGHT",
    "ERREUR": "ERROR",
    "TEXTE": "TEXT",
    "ENCRE": "INK",
    "TAMPON": "STAMP",
}
# Half and quarter points (domain.md 1.5, the exam's default step).
STEP_HUNDREDTHS = 25
MAX_CONTENT_LENGTH = 10_000
MAX_STROKES = 500
MAX_STROKE_POINTS = 20_000
MAX_STROKE_WIDTH = 100.0


@dataclass(frozen=True, slots=True)
class Box:
    """A place on a page: left, top, width, height, clamped into the page."""

    x: float
    y: float
    w: float
    h: float


def _number(name: str, value: object) -> float:
    # bool is an int for Python; a string that looks like a number is still not one.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid("INVALID_COORDINATES", f"{name} is a number", field=name)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise Invalid("INVALID_COORDINATES", f"{name} is a finite number", field=name)
    return found


def box(x: object, y: object, w: object, h: object) -> Box:
    """Check and clamp a place; raises Invalid (INVALID_COORDINATES, ANNOTATION_OUT_OF_PAGE)."""
    left, width = _edge("x", "w", _number("x", x), _number("w", w))
    top, height = _edge("y", "h", _number("y", y), _number("h", h))
    return Box(left, top, width, height)


def _edge(start_name: str, size_name: str, start: float, size: float) -> tuple[float, float]:
    if start < -EPSILON or start > 1 + EPSILON or start + size > 1 + EPSILON:
        raise Invalid(
            "ANNOTATION_OUT_OF_PAGE", f"{start_name} and {start_name} + {size_name} lie within 0..1", field=start_name
        )
    start = min(max(start, 0.0), 1.0)
    size = min(size, 1.0 - start)
    if size <= 0:
        raise Invalid("INVALID_COORDINATES", f"{size_name} is above 0", field=size_name)
    return start, size


def type_name(value: object) -> str:
    """Return the canonical type; raises Invalid (INVALID_ANNOTATION_TYPE)."""
    name = value.upper() if isinstance(value, str) else ""
    name = ALIASES.get(name, name)
    if name not in TYPES:
        raise Invalid("INVALID_ANNOTATION_TYPE", f"type is one of {', '.join(TYPES)}", field="type")
    return name


def content_length(text: str) -> str:
    """Return the text; raises Invalid (CONTENT_TOO_LONG)."""
    if len(text) > MAX_CONTENT_LENGTH:
        raise Invalid("CONTENT_TOO_LONG", f"a text has at most {MAX_CONTENT_LENGTH} characters", field="content")
    return text


def delta_hundredths(value: object) -> int | None:
    """Return a score delta in hundredths; raises Invalid (INVALID_SCORE_DELTA) unless it is a multiple of 0.25."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad_delta()
    try:
        found = scheme.hundredths(value)
    except Invalid:
        raise _bad_delta() from None
    if found % STEP_HUNDREDTHS:
        raise _bad_delta()
    return found


def _bad_delta() -> Invalid:
    return Invalid("INVALID_SCORE_DELTA", "score_delta is a multiple of 0.25 points", field="score_delta")


def strokes(value: Sequence[Mapping[str, Any]] | None, type: str) -> list[dict[str, Any]] | None:
    """Check pen strokes `[{width, points: [[x, y, pressure?], ...]}]`; raises Invalid (INVALID_STROKES).

    Width is in points of the page, x and y are fractions of it, pressure lies within 0..1.
    """
    if value is None:
        return None
    if type != "INK":
        raise _bad_strokes("only an INK annotation has strokes")
    if len(value) > MAX_STROKES or sum(len(stroke["points"]) for stroke in value) > MAX_STROKE_POINTS:
        raise _bad_strokes(f"at most {MAX_STROKES} strokes and {MAX_STROKE_POINTS} points")
    return [_stroke(stroke) for stroke in value]


def _stroke(stroke: Mapping[str, Any]) -> dict[str, Any]:
    width = _fraction(stroke["width"], MAX_STROKE_WIDTH)
    if width <= 0:
        raise _bad_strokes("a stroke has a width above 0")
    if not stroke["points"]:
        raise _bad_strokes("a stroke has at least one point")
    return {"width": width, "points": [_point(point) for point in stroke["points"]]}


def _point(point: Sequence[object]) -> list[float]:
    if len(point) not in (2, 3):
        raise _bad_strokes("a point is [x, y] or [x, y, pressure]")
    return [_fraction(value, 1.0) for value in point]


def _fraction(value: object, highest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad_strokes("strokes hold numbers")
    # A comparison with NaN is false, so this refuses it too.
    if not -EPSILON <= value <= highest + EPSILON:
        raise _bad_strokes(f"a number of a stroke lies within 0..{highest:g}")
    return min(max(float(value), 0.0), highest)


def _bad_strokes(message: str) -> Invalid:
    return Invalid("INVALID_STROKES", message, field="strokes")
