"""From scores and annotations to a mark: the one computation (domain.md 1.6).

Used by the desk's answer, the finalise gate, the manifest of the final PDF and every later recalculation, so that
none of them can differ. All amounts are whole hundredths of a point.

    question = its explicit score, else max(0, min(max, base + sum of the deltas bound to it)) when there are any
    total    = max(0, min(max, sum of the questions + sum of the deltas bound to none))

null (not marked), 0 and "NT" (not attempted) are three states: NT counts 0 and is complete, null is not complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from korrigo_grading.domain import scheme
from korrigo_grading.domain.scheme import Leaf
from korrigo_kit.errors import Invalid

NOT_ATTEMPTED: Literal["NT"] = "NT"
Score = int | Literal["NT"] | None
# What a question begins with before its annotations add and take away.
BASE_HUNDREDTHS = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """Points that an annotation adds or takes away, for a question or for the copy as a whole."""

    hundredths: int
    question_id: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """One question with its score."""

    id: str
    label: str
    max_hundredths: int
    depth: int
    score: Score


@dataclass(frozen=True, slots=True)
class Sheet:
    """A marked copy: every question, the total, and what is still missing."""

    lines: tuple[Line, ...]
    total: int
    maximum: int

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of the questions that are not marked."""
        return tuple(line.id for line in self.lines if line.score is None)

    @property
    def is_complete(self) -> bool:
        return not self.missing


def sheet(leaves: Sequence[Leaf], maximum: int, explicit: Mapping[str, Score], deltas: Iterable[Delta]) -> Sheet:
    """Compute a copy's mark. What is bound to a question that the scheme does not have (any more) does not count."""
    bound: dict[str | None, int] = {}
    for delta in deltas:
        bound[delta.question_id] = bound.get(delta.question_id, 0) + delta.hundredths
    lines = tuple(
        Line(leaf.id, leaf.label, leaf.max_hundredths, leaf.depth, _score(leaf, explicit.get(leaf.id), bound))
        for leaf in leaves
    )
    total = sum(line.score for line in lines if isinstance(line.score, int)) + bound.get(None, 0)
    return Sheet(lines, _clamp(total, maximum), maximum)


def _score(leaf: Leaf, explicit: Score, bound: Mapping[str | None, int]) -> Score:
    if explicit is not None:
        return explicit
    if leaf.id not in bound:
        return None
    return _clamp(BASE_HUNDREDTHS + bound[leaf.id], leaf.max_hundredths)


def _clamp(amount: int, highest: int) -> int:
    return max(0, min(highest, amount))


def parse(given: Mapping[str, Any], leaves: Sequence[Leaf]) -> dict[str, Score]:
    """Read the scores of a request; raises Invalid (INVALID_SCORE) naming the question.

    A score is null, "NT" or a JSON number from 0 to the question's maximum, exact to 0.01.
    """
    maxima = {leaf.id: leaf.max_hundredths for leaf in leaves}
    return {question_id: _parse_one(question_id, value, maxima) for question_id, value in given.items()}


def _parse_one(question_id: str, value: Any, maxima: Mapping[str, int]) -> Score:
    if question_id not in maxima:
        raise _refused(question_id, "the scheme has no such question")
    if value is None or value == NOT_ATTEMPTED:
        return None if value is None else NOT_ATTEMPTED
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(question_id, 'a score is a number, null or "NT"')
    try:
        amount = scheme.hundredths(value)
    except Invalid:
        raise _refused(question_id, "a score is a finite number with at most two decimals") from None
    if not 0 <= amount <= maxima[question_id]:
        raise _refused(question_id, f"a score lies within 0 and {scheme.number(maxima[question_id])}")
    return amount


def _refused(question_id: str, message: str) -> Invalid:
    return Invalid("INVALID_SCORE", message, question_id=question_id[:64])


def merge(current: Mapping[str, Score], change: Mapping[str, Score]) -> dict[str, Score]:
    """Put a change over what is there: questions left out stay, null clears."""
    merged = {**current, **change}
    return {question_id: score for question_id, score in merged.items() if score is not None}


def differences(before: Mapping[str, Score], after: Mapping[str, Score]) -> dict[str, dict[str, Score]]:
    """Name the questions whose explicit score changed, with hundredths from and to, for the SCORE event."""
    return {
        question_id: {"from": before.get(question_id), "to": after.get(question_id)}
        for question_id in sorted({*before, *after})
        if before.get(question_id) != after.get(question_id)
    }


def public(score: Score) -> int | float | str | None:
    """Write a score as JSON at the edge."""
    return scheme.number(score) if isinstance(score, int) else score
