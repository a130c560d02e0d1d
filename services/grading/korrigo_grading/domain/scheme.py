"""Marking schemes: a tree of questions whose leaves carry the points.

Read by `models.exams` when an exam is written and read, and by everything that adds up scores. Points are whole
hundredths here; JSON numbers exist only at the edge (decisions.md, Decimals). Question ids are chosen by the
client and stay: scores are kept under them, so an id names one question for the life of the exam.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from korrigo_kit.errors import Invalid

# numeric(8,2) in the tables.
MAX_HUNDREDTHS = 99_999_999
MAX_DEPTH = 6
MAX_NODES = 500
MAX_ID_LENGTH = 64
MAX_LABEL_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Question:
    """A node of a scheme; the points of one with children are the sum of theirs."""

    id: str
    label: str
    hundredths: int
    children: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """A question that is scored: `depth` 0 = top level."""

    id: str
    label: str
    max_hundredths: int
    depth: int


def hundredths(value: Decimal | float | int) -> int:
    """Turn points into whole hundredths, exactly; raises Invalid (INVALID_POINTS) for more than two decimals.

    A float is read by its shortest decimal form, which is what the client wrote in JSON.
    """
    try:
        exact = Decimal(str(value)) * 100
    except InvalidOperation:
        raise Invalid("INVALID_POINTS", "points are a number") from None
    if not exact.is_finite() or exact != exact.to_integral_value() or abs(exact) > MAX_HUNDREDTHS:
        raise Invalid("INVALID_POINTS", "points have at most two decimals and are below 1 000 000")
    return int(exact)


def number(amount: int) -> int | float:
    """Write hundredths as the JSON number of the edge: 1250 -> 12.5, 1200 -> 12."""
    return amount // 100 if amount % 100 == 0 else float(Decimal(amount) / 100)


def scheme(nodes: Sequence[Mapping[str, Any]], max_hundredths: int) -> tuple[Question, ...]:
    """Check a `grading_structure` and return it; raises Invalid (INVALID_GRADING_STRUCTURE).

    The points of a node with children may be left out or zero; otherwise they must equal the sum of the leaves
    below it, because two readings of one scheme give two marks.
    """
    counter = _Counter()
    questions = tuple(_question(node, 0, counter) for node in nodes)
    if not questions:
        raise _refused("a scheme has at least one question")
    total = sum(question.hundredths for question in questions)
    if total != max_hundredths:
        raise _refused(
            f"the points of the leaves sum to {number(total)}, max_score is {number(max_hundredths)}",
            sum=number(total),
            max_score=number(max_hundredths),
        )
    if max_hundredths <= 0:
        raise _refused("max_score is above zero")
    return questions


class _Counter:
    """What must hold over the whole tree: every id once, not too many nodes."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def add(self, id: str) -> None:
        if id in self._ids:
            raise _refused("two questions have the same id", question_id=id)
        self._ids.add(id)
        if len(self._ids) > MAX_NODES:
            raise _refused(f"a scheme has at most {MAX_NODES} questions")


def _question(node: Mapping[str, Any], depth: int, counter: _Counter) -> Question:
    if depth >= MAX_DEPTH:
        raise _refused(f"questions are nested at most {MAX_DEPTH} deep")
    id, label = str(node["id"]), str(node["label"])
    _check_line("id", id, MAX_ID_LENGTH)
    _check_line("label", label, MAX_LABEL_LENGTH)
    counter.add(id)
    children = tuple(_question(child, depth + 1, counter) for child in node.get("children") or ())
    given = _points(node, id)
    if not children:
        if given is None:
            raise _refused("a question without children has points", question_id=id)
        return Question(id, label, given)
    total = sum(child.hundredths for child in children)
    if given not in (None, 0, total):
        raise _refused(
            f"the points of a question with children are their sum, {number(total)}",
            question_id=id,
            sum=number(total),
        )
    return Question(id, label, total, children)


def _points(node: Mapping[str, Any], id: str) -> int | None:
    value = node.get("points")
    if value is None:
        return None
    try:
        points = hundredths(value)
    except Invalid as error:
        raise _refused(error.message, question_id=id) from None
    if points < 0:
        raise _refused("points are not below zero", question_id=id)
    return points


def _check_line(field: str, text: str, longest: int) -> None:
    if not 1 <= len(text) <= longest or text != text.strip() or not text.isprintable():
        raise _refused(f"{field}: one line of 1 to {longest} characters without spaces around it")


def _refused(message: str, **metadata: Any) -> Invalid:
    return Invalid("INVALID_GRADING_STRUCTURE", message, **metadata)


def document(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Write a scheme as the `grading_structure` of the API and of the table."""
    found = []
    for question in questions:
        node: dict[str, Any] = {"id": question.id, "label": question.label, "points": number(question.hundredths)}
        if question.children:
            node["children"] = document(question.children)
        found.append(node)
    return found


def leaves(questions: Iterable[Question], depth: int = 0) -> list[Leaf]:
    """List the questions that are scored, in the order of the scheme."""
    return list(_leaves(questions, depth))


def _leaves(questions: Iterable[Question], depth: int) -> Iterator[Leaf]:
    for question in questions:
        if question.children:
            yield from _leaves(question.children, depth + 1)
        else:
            yield Leaf(question.id, question.label, question.hundredths, depth)
