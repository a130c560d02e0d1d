"""Breaking lines, placing notes, writing numbers and dates, thinning pen lines: the pure parts of the engine."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korrigo_render.engine import labels
from korrigo_render.engine.font import Embedded, faces
from korrigo_render.engine.overlay import thin_out
from korrigo_render.engine.place import MARGIN, Page, Rectangle, nearest_points
from korrigo_render.engine.wrap import wrap

MEASURE = faces()[0].width
TEXT = st.text(st.sampled_from("abcdéèœ WiM.,;’αΩ≤√ \n\t\u00a0\u202f-"), max_size=300)


@settings(deadline=None)
@given(TEXT, st.floats(0.5, 40))
def test_wrapping_loses_nothing_and_keeps_to_the_width(text: str, width: float) -> None:
    lines = wrap(text, width, MEASURE)
    assert re.sub("[ \n\t]", "", "".join(lines)) == re.sub("[ \n\t]", "", text)
    for line in lines:
        assert MEASURE(line) <= width + 1e-9 or len(line) == 1
        assert "\n" not in line
        assert "\t" not in line


@settings(deadline=None)
@given(st.lists(st.text("abcdéèœWiM.;’αΩ≤√-\u00a0", min_size=1, max_size=12), max_size=40), st.floats(3, 40))
def test_wrapping_breaks_only_where_it_must(words: list[str], width: float) -> None:
    """A word that fits a line is never broken, and a line takes every word that still fits."""
    lines = wrap(" ".join(words), width, MEASURE)
    whole = {w for w in words if MEASURE(w) <= width}
    assert whole <= {w for line in lines for w in line.split(" ")}
    for line, following in pairwise(lines):
        first = following.split(" ")[0]
        if first in whole:
            assert MEASURE(f"{line} {first}") > width - 1e-9


def test_typed_line_ends_and_indents_are_kept() -> None:
    assert wrap("a\n\n  b\n", 50, MEASURE) == ["a", "", "  b", ""]
    assert wrap("Quoi\u00a0?", 2.2, MEASURE)[0] != "Quoi"  # broken inside, but never at the no-break space alone


def test_a_long_word_is_broken_and_whole() -> None:
    word = "x" * 500
    lines = wrap(f"voir {word} fin", 10, MEASURE)
    assert "".join(lines).replace(" ", "") == f"voir{word}fin"
    assert all(MEASURE(line) <= 10 + 1e-9 for line in lines)


BOXES = st.builds(
    Rectangle, st.floats(0, 560), st.floats(0, 800), st.floats(5, 300).map(float), st.floats(5, 300).map(float)
)


@settings(deadline=None)
@given(st.lists(st.tuples(BOXES, st.floats(10, 250), st.floats(8, 200)), max_size=25))
def test_notes_stay_on_the_page_and_cover_nothing(notes: list[tuple[Rectangle, float, float]]) -> None:
    page = Page(595, 842)
    placed: list[Rectangle] = []
    for anchor, w, h in notes:
        spot = page.find(anchor, w, h, is_strict=False)
        if spot is None:
            continue
        assert spot.lies_in(595, 842)
        assert not any(spot.overlaps(other) for other in placed)
        placed.append(spot)
        page.hard.append(spot)


def test_a_strict_search_spares_the_boxes_of_others() -> None:
    page = Page(595, 842)
    anchor = Rectangle(100, 100, 80, 20)
    below = Rectangle(90, 120, 300, 60)
    page.soft += [anchor, below]
    strict = page.find(anchor, 120, 30, is_strict=True)
    assert strict is not None
    assert not strict.overlaps(below)
    assert not strict.overlaps(anchor)
    loose = page.find(anchor, 120, 30, is_strict=False)
    assert loose is not None
    assert loose.overlaps(below)


def test_a_box_round_the_whole_page_has_its_text_inside() -> None:
    spot = Page(595, 842).find(Rectangle(0, 0, 595, 842), 165, 40, is_strict=True)
    assert spot is not None
    assert spot.lies_in(595, 842)


def test_something_larger_than_the_page_finds_no_place() -> None:
    assert Page(595, 842).find(Rectangle(10, 10, 10, 10), 590, 20, is_strict=False) is None
    moved = Page(595, 842).clamp(Rectangle(580, -5, 60, 20))
    assert (moved.x, moved.y) == (595 - MARGIN - 60, MARGIN)


def test_the_leading_line_is_the_shortest() -> None:
    assert nearest_points(Rectangle(0, 0, 10, 10), Rectangle(20, 0, 10, 10)) == ((10, 5), (20, 5))
    assert nearest_points(Rectangle(0, 0, 10, 10), Rectangle(2, 30, 4, 5)) == ((4, 10), (4, 30))


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), min_size=1, max_size=60))
def test_a_thinned_pen_line_stays_where_it_was(points: list[tuple[float, float]]) -> None:
    kept = thin_out(points, 0.5)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    for p in points:
        assert min(_distance(p, a, b) for a, b in zip(kept, kept[1:] or kept, strict=False)) <= 0.5 + 1e-6


def _distance(p: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    length = math.dist(a, b)
    if length == 0:
        return math.dist(p, a)
    t = max(0.0, min(1.0, ((p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])) / length**2))
    return math.dist(p, (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))


def test_a_straight_pen_line_needs_two_points() -> None:
    assert thin_out([(i, 2.0 * i) for i in range(100)], 0.1) == [(0, 0.0), (99, 198.0)]


@pytest.mark.parametrize(
    ("hundredths", "french", "english"),
    [
        (1450, "14,5", "14.5"),
        (2000, "20", "20"),
        (25, "0,25", "0.25"),
        (-100, "−1", "−1"),
        (0, "0", "0"),
        (5, "0,05", "0.05"),
    ],
)
def test_points_are_written_exactly(hundredths: int, french: str, english: str) -> None:
    assert labels.points(hundredths, "fr") == french
    assert labels.points(hundredths, "en") == english


def test_signs_and_missing_points() -> None:
    assert labels.delta(50, "fr") == "+0,5"
    assert labels.delta(-150, "en") == "−1.5"
    assert labels.points(None, "fr") == "–"


def test_dates_are_words_and_never_converted() -> None:
    assert labels.date("2026-03-01", "fr") == "1er mars 2026"
    assert labels.date("2026-03-12", "en") == "12 March 2026"
    assert labels.date("au printemps", "fr") == "au printemps"
    assert labels.moment("2026-08-18T14:05:00+00:00", "fr") == "18 août 2026 à 14:05 UTC"
    assert labels.moment("2026-08-18T14:05:00+02:00", "en") == "18 August 2026 at 14:05 UTC+02:00"


def test_both_languages_have_the_same_words() -> None:
    assert labels.labels("fr").keys() == labels.labels("en").keys()
    assert labels.labels("de") is labels.labels("fr")


def test_bold_covers_what_french_headings_need() -> None:
    assert faces()[1].covers("Où l’élève a-t-il été noté ? Œuvre, cœur, ÀÉÈÊÎÔÛÇ « α ≤ β » 0123456789 +−,–—·…")


def test_glyphs_are_numbered_by_first_use() -> None:
    font = Embedded(faces()[0])
    assert font.encode("abba") == "0001000200020001"
    assert font.encode("ca") == "00030001"
