"""Exams: made and changed by admins, read by those who work on them. Called by `rest.exams` and `rpc`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from korrigo_grading.domain import scheme
from korrigo_grading.domain.scheme import Question
from korrigo_grading.events.exams import exam_changed
from korrigo_grading.models import accounts, exams
from korrigo_grading.models.exams import Exam, Split
from korrigo_grading.models.texts import drawable_line
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import Forbidden, Invalid, StateConflict
from korrigo_kit.ids import is_uuid, new_id
from korrigo_kit.room import Runtime

DEFAULT_SPLIT = Split("A3_to_A4", 4, True)
DEFAULT_MAX_SCORE = 20
_MAX_NAME_LENGTH = 255
# Modes that ingest can cut; custom plans come with a later story.
_MODES = ("A3_to_A4", "A4_single")


@dataclass(frozen=True, slots=True)
class Wish:
    """What an exam shall be; None = as it is (when changed) or the default (when made)."""

    name: str | None = None
    date: date | None = None
    split: Split | None = None
    grading_structure: Sequence[Mapping[str, Any]] | None = None
    max_score: float | None = None
    auto_validate: bool | None = None
    corrector_ids: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class _Values:
    """An exam's values after a wish was granted."""

    name: str
    date: date
    split: Split
    questions: tuple[Question, ...]
    max_hundredths: int
    auto_validate: bool
    corrector_ids: tuple[str, ...]


_NAMES = ("name", "date", "split", "questions", "max_hundredths", "auto_validate", "corrector_ids")
# How the audit trail calls what changed: the API's names.
_PUBLIC = {"split": "split_config", "questions": "grading_structure", "max_hundredths": "max_score"}


def create(rt: Runtime, caller: Principal, wish: Wish, and_then: Callable[[Tx, Exam], None]) -> Exam:
    """Make an exam; `and_then` runs in the same transaction. Name, date and grading_structure are needed.

    Raises Forbidden, and Invalid (INVALID_TEXT, UNSUPPORTED_CHARACTER, INVALID_GRADING_STRUCTURE, INVALID_POINTS,
    SPLIT_MODE_NOT_AVAILABLE, UNKNOWN_CORRECTOR).
    """
    caller.require("admin")
    assert wish.name is not None and wish.date is not None and wish.grading_structure is not None
    max_score = wish.max_score if wish.max_score is not None else DEFAULT_MAX_SCORE
    questions, max_hundredths = _scheme(wish.grading_structure, max_score)
    values = _Values(
        name=_name(wish.name),
        date=wish.date,
        split=_split(wish.split or DEFAULT_SPLIT),
        questions=questions,
        max_hundredths=max_hundredths,
        auto_validate=bool(wish.auto_validate),
        corrector_ids=_distinct(wish.corrector_ids or ()),
    )
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        _check_correctors(tx, values.corrector_ids)
        made = exams.insert(tx, new_id(), _columns(values), caller.user_id)
        exam_changed(
            tx,
            made,
            action="EXAM_CREATED",
            actor_id=caller.user_id,
            metadata={"scheme_version": made.scheme_version, "split_mode": made.split.mode},
        )
        and_then(tx, made)
    return made


def change(rt: Runtime, caller: Principal, exam_id: str, wish: Wish, approve: Callable[[Exam], None]) -> Exam:
    """Change an exam; a wish that changes nothing writes nothing.

    `approve` is shown the exam under its lock and raises when the caller has not seen that version. Raises as
    `create`, NotFound (EXAM_NOT_FOUND), and StateConflict (EXAM_HAS_COPIES): how scans are cut is fixed by the
    first copy, the marking scheme by the first copy that somebody has begun to mark.
    """
    caller.require("admin")
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        found = exams.lock(tx, exam_id)
        approve(found)
        values = _granted(found, wish)
        changed = [name for name in _NAMES if getattr(values, name) != getattr(found, name)]
        if not changed:
            return found
        is_scheme_new = bool({"questions", "max_hundredths"} & set(changed))
        _check_copies(tx, exam_id, is_split_new="split" in changed, is_scheme_new=is_scheme_new)
        _check_correctors(tx, [id for id in values.corrector_ids if id not in found.corrector_ids])
        after = exams.update(tx, exam_id, _columns(values), is_scheme_new=is_scheme_new)
        exam_changed(
            tx,
            after,
            action="EXAM_UPDATED",
            actor_id=caller.user_id,
            metadata={
                "changed": sorted(_PUBLIC.get(name, name) for name in changed),
                "scheme_version": after.scheme_version,
            },
        )
    return after


def _granted(found: Exam, wish: Wish) -> _Values:
    questions, max_hundredths = found.questions, found.max_hundredths
    if wish.grading_structure is not None or wish.max_score is not None:
        structure = wish.grading_structure
        questions, max_hundredths = _scheme(
            scheme.document(found.questions) if structure is None else structure,
            scheme.number(found.max_hundredths) if wish.max_score is None else wish.max_score,
        )
    return _Values(
        name=found.name if wish.name is None else _name(wish.name),
        date=wish.date or found.date,
        split=found.split if wish.split is None else _split(wish.split),
        questions=questions,
        max_hundredths=max_hundredths,
        auto_validate=found.auto_validate if wish.auto_validate is None else wish.auto_validate,
        corrector_ids=found.corrector_ids if wish.corrector_ids is None else _distinct(wish.corrector_ids),
    )


def _columns(values: _Values) -> dict[str, Any]:
    return exams.columns(**{name: getattr(values, name) for name in _NAMES})


def _name(text: str) -> str:
    return drawable_line("name", text, _MAX_NAME_LENGTH)


def _split(split: Split) -> Split:
    if split.mode not in _MODES:
        raise Invalid("SPLIT_MODE_NOT_AVAILABLE", "this way to cut scans comes later", mode=split.mode)
    return split


def _scheme(structure: Sequence[Mapping[str, Any]], max_score: float) -> tuple[tuple[Question, ...], int]:
    max_hundredths = scheme.hundredths(max_score)
    questions = scheme.scheme(structure, max_hundredths)
    _check_drawable(questions)
    return questions, max_hundredths


def _check_drawable(questions: Sequence[Question]) -> None:
    # The score page prints ids and labels.
    for question in questions:
        drawable_line("grading_structure id", question.id, scheme.MAX_ID_LENGTH)
        drawable_line("grading_structure label", question.label, scheme.MAX_LABEL_LENGTH)
        _check_drawable(question.children)


def _distinct(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({str(UUID(id)) for id in ids}))


def _check_correctors(tx: Tx, ids: Sequence[str]) -> None:
    unknown = accounts.unknown_correctors(tx, ids) if ids else []
    if unknown:
        raise Invalid(
            "UNKNOWN_CORRECTOR",
            "correctors are active accounts with the role marker or lead_marker",
            corrector_ids=unknown,
        )


def _check_copies(tx: Tx, exam_id: str, *, is_split_new: bool, is_scheme_new: bool) -> None:
    if is_split_new and exams.has_copies(tx, exam_id):
        raise StateConflict("EXAM_HAS_COPIES", "scans of this exam were cut already: split_config is fixed")
    if is_scheme_new and exams.is_marking_begun(tx, exam_id):
        raise StateConflict(
            "EXAM_HAS_COPIES", "marking has begun: grading_structure and max_score cannot change for now"
        )


def read(rt: Runtime, caller: Principal, exam_id: str) -> Exam:
    """Read an exam; raises Forbidden, and NotFound (EXAM_NOT_FOUND) also for one that is not the caller's."""
    _require_reader(caller)
    with rt.db.transaction() as tx:
        return exams.find_for(tx, caller, exam_id)


def page(rt: Runtime, caller: Principal, after: tuple[str, str] | None, limit: int) -> list[Exam]:
    """List the exams that the caller may see, newest first; raises Forbidden."""
    _require_reader(caller)
    with rt.db.transaction() as tx:
        return exams.page(tx, caller, after, limit)


def _require_reader(caller: Principal) -> None:
    caller.require(*exams.READERS_OF_ALL, "marker")


def read_for_import(rt: Runtime, person: Principal | None, exam_id: str) -> Exam:
    """Read an exam for ingest, on behalf of who uploads or of ingest itself; raises Forbidden and NotFound."""
    if person is not None and not person.has("admin", "scan_operator"):
        raise Forbidden("FORBIDDEN", "your roles do not allow this", needs=["admin", "scan_operator"])
    if not is_uuid(exam_id):
        raise exams.missing()
    with rt.db.transaction() as tx:
        return exams.find(tx, exam_id)
