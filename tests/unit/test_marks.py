"""From scores and annotations to a mark, and what may be written: the pure rules of grading."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from korrigo_grading.domain import annotations as places
from korrigo_grading.domain import finalisation, ranges, statuses
from korrigo_grading.domain import scores as rules
from korrigo_grading.domain.scheme import Leaf
from korrigo_grading.domain.scores import Delta, Score
from korrigo_kit.errors import Invalid, StateConflict

LEAVES = [Leaf("a", "A", 800, 0), Leaf("b", "B", 500, 1), Leaf("c", "C", 700, 1)]
MAXIMUM = 2000

explicit_scores = st.dictionaries(
    st.sampled_from("abc"), st.one_of(st.integers(0, 500), st.just("NT"), st.none()), max_size=3
)
deltas = st.lists(
    st.builds(Delta, st.integers(-400, 400).map(lambda n: n * 25), st.sampled_from(["a", "b", "c", "gone", None]))
)


def total(explicit: dict[str, Score], *given: Delta) -> int:
    return rules.sheet(LEAVES, MAXIMUM, explicit, given).total


# ------------------------------------------------------------------------------------------------------ scores
@given(explicit_scores, deltas)
def test_a_mark_stays_within_its_bounds(explicit: dict[str, Score], given: list[Delta]) -> None:
    sheet = rules.sheet(LEAVES, MAXIMUM, explicit, given)
    assert 0 <= sheet.total <= MAXIMUM
    for line in sheet.lines:
        assert line.score is None or line.score == "NT" or 0 <= line.score <= line.max_hundredths
    assert [line.id for line in sheet.lines] == ["a", "b", "c"]
    assert sheet.is_complete == all(line.score is not None for line in sheet.lines)


@given(explicit_scores, deltas)
def test_the_order_of_annotations_does_not_matter(explicit: dict[str, Score], given: list[Delta]) -> None:
    assert rules.sheet(LEAVES, MAXIMUM, explicit, given) == rules.sheet(LEAVES, MAXIMUM, explicit, given[::-1])


@given(explicit_scores, deltas, st.integers(-400, 400))
def test_what_is_written_wins_over_the_annotations_of_its_question(
    explicit: dict[str, Score], given: list[Delta], amount: int
) -> None:
    marked = {**explicit, "a": 300}
    assert total(marked, *given) == total(marked, *given, Delta(amount, "a"), Delta(amount, "gone"))


def test_three_states_of_a_question() -> None:
    unmarked, zero, not_attempted = ({"a": 1, "b": 1, "c": score} for score in (None, 0, "NT"))
    assert [rules.sheet(LEAVES, MAXIMUM, s, ()).total for s in (unmarked, zero, not_attempted)] == [2, 2, 2]  # type: ignore[arg-type]
    assert rules.sheet(LEAVES, MAXIMUM, unmarked, ()).missing == ("c",)  # type: ignore[arg-type]
    assert rules.sheet(LEAVES, MAXIMUM, zero, ()).is_complete  # type: ignore[arg-type]
    assert rules.sheet(LEAVES, MAXIMUM, not_attempted, ()).is_complete  # type: ignore[arg-type]


def test_deltas_make_a_score_where_none_was_written() -> None:
    assert total({}, Delta(150, "a"), Delta(-50, "a")) == 100
    assert total({}, Delta(-150, "a")) == 0
    assert total({}, Delta(900, "b")) == 500
    assert total({"a": 700}, Delta(150, "a")) == 700


def test_loose_deltas_are_bonus_and_penalty() -> None:
    assert total({"a": 700}, Delta(50, None), Delta(-25, None)) == 725
    assert total({"a": 700}, Delta(-900, None)) == 0
    assert total({"a": 800, "b": 500, "c": 700}, Delta(100, None)) == MAXIMUM


@given(st.integers(0, 800))
def test_every_hundredth_is_read_exactly(amount: int) -> None:
    number = float(Decimal(amount) / 100)
    assert rules.parse({"a": number}, LEAVES) == {"a": amount}
    assert rules.public(amount) == number


@pytest.mark.parametrize(
    "value", [8.01, -0.01, -1, 0.001, 1e-9, math.nan, math.inf, -math.inf, 1e300, "5", "nt", "", True, False, [1], {}]
)
def test_wrong_scores_are_refused(value: Any) -> None:
    with pytest.raises(Invalid, match="INVALID_SCORE") as refused:
        rules.parse({"b": 1, "a": value}, LEAVES)
    assert refused.value.metadata["question_id"] == "a"


def test_unknown_questions_are_refused() -> None:
    with pytest.raises(Invalid, match="INVALID_SCORE"):
        rules.parse({"z": 1}, LEAVES)


def test_a_change_goes_over_what_is_there() -> None:
    before: dict[str, Score] = {"a": 100, "b": "NT"}
    merged = rules.merge(before, {"b": None, "c": 5})
    assert merged == {"a": 100, "c": 5}
    assert rules.differences(before, merged) == {"b": {"from": "NT", "to": None}, "c": {"from": None, "to": 5}}


def test_unfinished_copies_are_not_finalised() -> None:
    whole = rules.sheet(LEAVES, MAXIMUM, {"a": 1, "b": "NT", "c": 0}, ())
    finalisation.check(whole, ())
    with pytest.raises(StateConflict, match="ANNOTATION_ORPHANED"):
        finalisation.check(whole, ["x"])
    with pytest.raises(StateConflict, match="SCORE_INCOMPLETE") as refused:
        finalisation.check(rules.sheet(LEAVES, MAXIMUM, {"a": 1}, ()), ())
    assert refused.value.metadata["missing"] == ["b", "c"]


# ------------------------------------------------------------------------------------------------------ places
fractions = st.floats(0, 1, allow_nan=False)


@given(fractions, fractions, fractions, fractions)
def test_places_inside_are_kept(x: float, y: float, w: float, h: float) -> None:
    w, h = w * (1 - x), h * (1 - y)
    if min(w, h) <= 0 or min(1 - x, 1 - y) <= 0:
        return
    box = places.box(x, y, w, h)
    assert (box.x, box.y) == (x, y)
    assert math.isclose(box.w, w, abs_tol=1e-9) and math.isclose(box.h, h, abs_tol=1e-9)
    assert box.x + box.w <= 1 + 1e-9 and box.y + box.h <= 1 + 1e-9


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True))
def test_every_place_is_refused_or_inside(start: float, size: float) -> None:
    try:
        box = places.box(start, 0.5, size, 0.5)
    except Invalid as refused:
        assert refused.reason in ("INVALID_COORDINATES", "ANNOTATION_OUT_OF_PAGE")  # noqa: PT017 - either is right
        return
    assert 0 <= box.x <= 1 and 0 < box.w <= 1 and box.x + box.w <= 1 + 1e-9


@pytest.mark.parametrize("miss", [1e-7, 9e-7])
def test_the_rounding_of_a_client_is_clamped(miss: float) -> None:
    box = places.box(-miss, 0.5, 1 + miss, 0.5 + miss)
    assert (box.x, box.w, box.h) == (0.0, 1.0, 0.5)
    with pytest.raises(Invalid, match="ANNOTATION_OUT_OF_PAGE"):
        places.box(0.5, 0.5, 0.5 + 2e-6, 0.5)


@pytest.mark.parametrize("value", ["0.1", None, True, [0.1], math.nan, math.inf, 10**400])
def test_what_is_no_number_is_no_place(value: object) -> None:
    with pytest.raises(Invalid, match="INVALID_COORDINATES"):
        places.box(0.1, value, 0.1, 0.1)


def test_types_and_their_french_names() -> None:
    assert [places.type_name(name) for name in ("comment", "COMMENTAIRE", "SURLIGNAGE", "ERREUR", "INK")] == [
        "COMMENT", "COMMENT", "HIGHLIGHT", "ERROR", "INK",
    ]  # fmt: skip
    for wrong in ("COMMENTS", "", None, 7):
        with pytest.raises(Invalid, match="INVALID_ANNOTATION_TYPE"):
            places.type_name(wrong)


@given(st.integers(-4000, 4000))
def test_deltas_are_quarters(quarters: int) -> None:
    assert places.delta_hundredths(quarters / 4) == quarters * 25


@pytest.mark.parametrize("value", [0.1, 0.001, "1", True, math.nan, math.inf, 1e12])
def test_other_deltas_are_refused(value: object) -> None:
    with pytest.raises(Invalid, match="INVALID_SCORE_DELTA"):
        places.delta_hundredths(value)


def test_strokes() -> None:
    drawn = [{"width": 2, "points": [[0, 0.5], [1.0000001, 1, 0.5]]}]
    assert places.strokes(drawn, "INK") == [{"width": 2.0, "points": [[0.0, 0.5], [1.0, 1.0, 0.5]]}]
    for wrong in (
        [{"width": -1, "points": [[0.1, 0.1]]}],
        [{"width": 0, "points": [[0.1, 0.1]]}],
        [{"width": math.nan, "points": [[0.1, 0.1]]}],
        [{"width": 1, "points": []}],
        [{"width": 1, "points": [[2, 2]]}],
        [{"width": 1, "points": [[0.1]]}],
        [{"width": 1, "points": [[0.1, math.nan]]}],
        [{"width": 1, "points": [[0.1, 0.1, 0.1, 0.1]]}],
        [{"width": 1, "points": [[0.1, 0.1]] * (places.MAX_STROKE_POINTS + 1)}],
    ):
        with pytest.raises(Invalid, match="INVALID_STROKES"):
            places.strokes(wrong, "INK")
    with pytest.raises(Invalid, match="INVALID_STROKES"):
        places.strokes(drawn, "COMMENT")


# ------------------------------------------------------------------------------------------------------ the rest
def test_no_way_leads_back_to_staging_and_every_status_is_left() -> None:
    ways = [(source, target) for verb in statuses.TRANSITIONS.values() for source, target in verb.items()]
    assert "STAGING" not in {target for _, target in ways}
    assert {source for source, _ in ways} == set(statuses.STATUSES)
    assert {target for _, target in ways} == set(statuses.STATUSES) - {"STAGING"}
    for verb in statuses.TRANSITIONS:
        for status in statuses.STATUSES:
            if not statuses.can(verb, status):
                with pytest.raises(StateConflict):
                    statuses.after(verb, status)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None), ("bytes=0-", (0, 100)), ("bytes=10-29", (10, 30)), ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)), ("bytes=90-500", (90, 100)), ("bytes=5-4", None), ("bytes=-", None),
        ("bytes=1-2,5-6", None), ("items=1-2", None), ("bytes=a-b", None),
    ],
)  # fmt: skip
def test_ranges(header: str | None, expected: tuple[int, int] | None) -> None:
    found = ranges.parse(header, 100)
    assert (None if found is None else (found.start, found.end)) == expected
    assert found is None or not found.is_outside


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=500-600", "bytes=-0"])
def test_ranges_outside(header: str) -> None:
    found = ranges.parse(header, 100)
    assert found is not None and found.is_outside
