"""Exams: their rows, their documents, and who may read which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from korrigo_grading.domain import scheme
from korrigo_grading.domain.scheme import Question
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import NotFound

READERS_OF_ALL = ("admin", "scan_operator", "lead_marker", "auditor")
_COLUMNS = (
    "id::text AS id, name, date, split_mode, pages_per_booklet, split_horizontal,"
    " grading_structure::text AS grading_structure, max_score, scheme_version, auto_validate,"
    " corrector_ids::text[] AS corrector_ids, created_at, updated_at, version"
)


@dataclass(frozen=True, slots=True)
class Split:
    """How scans are cut; `pages_per_booklet` 0 = the whole PDF is one copy."""

    mode: str
    pages_per_booklet: int
    split_horizontal: bool


@dataclass(frozen=True, slots=True)
class Exam:
    """An exam; points in hundredths."""

    id: str
    name: str
    date: date
    split: Split
    questions: tuple[Question, ...]
    max_hundredths: int
    scheme_version: int
    auto_validate: bool
    corrector_ids: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    version: int


def exam(row: Mapping[str, Any]) -> Exam:
    """Read a row."""
    max_hundredths = scheme.hundredths(row["max_score"])
    return Exam(
        id=row["id"],
        name=row["name"],
        date=row["date"],
        split=Split(row["split_mode"], row["pages_per_booklet"], row["split_horizontal"]),
        questions=scheme.scheme(json.loads(row["grading_structure"], parse_float=Decimal), max_hundredths),
        max_hundredths=max_hundredths,
        scheme_version=row["scheme_version"],
        auto_validate=row["auto_validate"],
        corrector_ids=tuple(row["corrector_ids"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        version=row["version"],
    )


def find(tx: Tx, exam_id: str) -> Exam:
    """Read an exam, whoever asks; raises NotFound (EXAM_NOT_FOUND) for an unknown or deleted one."""
    row = tx.one(f"SELECT {_COLUMNS} FROM exams WHERE id = %s AND deleted_at IS NULL", (exam_id,))
    if row is None:
        raise missing()
    return exam(row)


def even_deleted(tx: Tx, exam_id: str) -> Exam:
    """Read an exam that is there, deleted or not."""
    return exam(tx.row(f"SELECT {_COLUMNS} FROM exams WHERE id = %s", (exam_id,)))


def find_for(tx: Tx, caller: Principal, exam_id: str) -> Exam:
    """Read an exam on behalf of a person; one that is not his does not exist for him (404)."""
    found = find(tx, exam_id)
    if not may_read(caller, found):
        raise missing()
    return found


def lock(tx: Tx, exam_id: str) -> Exam:
    """Read an exam and keep copies from being added to it until the commit; raises NotFound (EXAM_NOT_FOUND)."""
    # FOR UPDATE, because the foreign key of a new copy takes KEY SHARE.
    row = tx.one(f"SELECT {_COLUMNS} FROM exams WHERE id = %s AND deleted_at IS NULL FOR UPDATE", (exam_id,))
    if row is None:
        raise missing()
    return exam(row)


def missing() -> NotFound:
    """Say that there is no such exam, or not for the caller."""
    return NotFound("EXAM_NOT_FOUND", "there is no such exam")


def may_read(caller: Principal, found: Exam) -> bool:
    """Tell whether a person may see an exam: a marker sees those that he marks."""
    return caller.has(*READERS_OF_ALL) or (caller.has("marker") and caller.user_id in found.corrector_ids)


def page(tx: Tx, caller: Principal, after: tuple[str, str] | None, limit: int) -> list[Exam]:
    """List the exams that a person may see, newest first, from after one on."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM exams WHERE deleted_at IS NULL"
        " AND (%(all)s OR corrector_ids @> ARRAY[%(me)s::uuid])"
        " AND (%(at)s::timestamptz IS NULL OR (created_at, id) < (%(at)s::timestamptz, %(id)s::uuid))"
        " ORDER BY created_at DESC, id DESC LIMIT %(limit)s",
        {
            "all": caller.has(*READERS_OF_ALL),
            "me": caller.user_id,
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    return [exam(row) for row in rows]


def insert(tx: Tx, exam_id: str, values: Mapping[str, Any], created_by: str) -> Exam:
    """Write a new exam."""
    return exam(
        tx.row(
            "INSERT INTO exams (id, name, date, split_mode, pages_per_booklet, split_horizontal, grading_structure,"
            " max_score, auto_validate, corrector_ids, created_by) VALUES (%(id)s, %(name)s, %(date)s, %(split_mode)s,"
            " %(pages_per_booklet)s, %(split_horizontal)s, %(grading_structure)s, %(max_score)s, %(auto_validate)s,"
            f" %(corrector_ids)s::uuid[], %(created_by)s) RETURNING {_COLUMNS}",
            {"id": exam_id, "created_by": created_by, **values},
        )
    )


def update(tx: Tx, exam_id: str, values: Mapping[str, Any], *, is_scheme_new: bool) -> Exam:
    """Write all that may change of an exam and count its versions up."""
    return exam(
        tx.row(
            "UPDATE exams SET name = %(name)s, date = %(date)s, split_mode = %(split_mode)s,"
            " pages_per_booklet = %(pages_per_booklet)s, split_horizontal = %(split_horizontal)s,"
            " grading_structure = %(grading_structure)s, max_score = %(max_score)s, auto_validate = %(auto_validate)s,"
            " corrector_ids = %(corrector_ids)s::uuid[], scheme_version = scheme_version + %(step)s,"
            f" version = version + 1, updated_at = clock_timestamp() WHERE id = %(id)s RETURNING {_COLUMNS}",
            {"id": exam_id, "step": int(is_scheme_new), **values},
        )
    )


def columns(
    *,
    name: str,
    date: date,
    split: Split,
    questions: Sequence[Question],
    max_hundredths: int,
    auto_validate: bool,
    corrector_ids: Sequence[str],
) -> dict[str, Any]:
    """Write an exam's values as columns."""
    return {
        "name": name,
        "date": date,
        "split_mode": split.mode,
        "pages_per_booklet": split.pages_per_booklet,
        "split_horizontal": split.split_horizontal,
        # Numbers with two decimals at most survive JSON's shortest form exactly.
        "grading_structure": json.dumps(scheme.document(questions), ensure_ascii=False),
        "max_score": Decimal(max_hundredths) / 100,
        "auto_validate": auto_validate,
        "corrector_ids": list(corrector_ids),
    }


def has_copies(tx: Tx, exam_id: str) -> bool:
    """Tell whether scans of this exam were cut already; deleted copies may come back, so they count."""
    return tx.one("SELECT 1 FROM copies WHERE exam_id = %s LIMIT 1", (exam_id,)) is not None


def is_marking_begun(tx: Tx, exam_id: str) -> bool:
    """Tell whether anything was written under the exam's scheme; a copy that was given back is READY but has scores."""
    found = tx.one(
        "SELECT 1 FROM copies c WHERE c.exam_id = %s AND (c.status NOT IN ('STAGING', 'READY')"
        " OR EXISTS (SELECT 1 FROM scores s WHERE s.copy_id = c.id AND s.scores <> '{}')"
        " OR EXISTS (SELECT 1 FROM annotations a WHERE a.copy_id = c.id AND a.deleted_at IS NULL"
        "   AND a.question_id IS NOT NULL)) LIMIT 1",
        (exam_id,),
    )
    return found is not None
