"""Marking schemes: exact sums, stable ids, closed shapes."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from korrigo_grading.domain import scheme
from korrigo_kit.errors import Invalid

Node = dict[str, Any]


def leaf(id: str, points: float | None) -> Node:
    return {"id": id, "label": f"Question {id}", "points": points}


def refused(nodes: list[Node], max_hundredths: int) -> str:
    with pytest.raises(Invalid) as caught:
        scheme.scheme(nodes, max_hundredths)
    assert caught.value.reason == "INVALID_GRADING_STRUCTURE"
    return caught.value.message


def test_a_nested_scheme_sums_its_leaves_and_lists_them_in_order() -> None:
    nodes: list[Node] = [
        {"id": "1", "label": "One", "points": 7.5, "children": [leaf("1.a", 2.25), leaf("1.b", 5.25)]},
        {"id": "2", "label": "Two", "points": None, "children": [leaf("2.a", 0.1), leaf("2.b", 0.2)]},
        leaf("3", 12.2),
    ]
    questions = scheme.scheme(nodes, 2000)
    assert [(item.id, item.max_hundredths, item.depth) for item in scheme.leaves(questions)] == [
        ("1.a", 225, 1), ("1.b", 525, 1), ("2.a", 10, 1), ("2.b", 20, 1), ("3", 1220, 0),
    ]  # fmt: skip
    document = scheme.document(questions)
    assert document[1]["points"] == 0.3 and document[2] == {"id": "3", "label": "Question 3", "points": 12.2}
    assert scheme.scheme(document, 2000) == questions


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([], "at least one question"),
        ([leaf("a", 10)], "sum to 10"),
        ([leaf("a", 10), leaf("a", 10)], "same id"),
        ([leaf("a", 20.001)], "two decimals"),
        ([leaf("a", -1), leaf("b", 21)], "below zero"),
        ([leaf("a", None)], "has points"),
        ([{**leaf("p", 5), "children": [leaf("a", 20)]}], "their sum, 20"),
        ([leaf(" a", 20)], "id: one line"),
        ([leaf("a\nb", 20)], "id: one line"),
        ([{"id": "a", "label": "", "points": 20}], "label: one line"),
        ([leaf(f"q{n}", 0.04) for n in range(501)], "at most 500"),
    ],
)
def test_what_is_refused_and_why(nodes: list[Node], said: str) -> None:
    assert said in refused(nodes, 2000)


def test_depth_is_bounded() -> None:
    node: Node = leaf("deepest", 20)
    for depth in range(scheme.MAX_DEPTH - 1):
        node = {"id": f"d{depth}", "label": "x", "children": [node]}
    assert scheme.leaves(scheme.scheme([node], 2000))[0].depth == scheme.MAX_DEPTH - 1
    assert "nested" in refused([{"id": "top", "label": "x", "children": [node]}], 2000)


@given(st.integers(0, scheme.MAX_HUNDREDTHS))
def test_points_survive_json_exactly(amount: int) -> None:
    """Hundredths -> JSON number -> text -> number -> hundredths, whether read as float or as Decimal."""
    text = json.dumps(scheme.number(amount))
    assert scheme.hundredths(json.loads(text)) == amount
    assert scheme.hundredths(json.loads(text, parse_float=Decimal)) == amount


@pytest.mark.parametrize("value", [0.001, 1e308, float("nan"), float("inf"), Decimal("1.005"), 1_000_000, "x"])
def test_points_that_are_none(value: Any) -> None:
    with pytest.raises(Invalid, match="INVALID_POINTS"):
        scheme.hundredths(value)
