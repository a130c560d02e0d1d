"""Exams over HTTP."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from korrigo_grading.domain import scheme
from korrigo_grading.flows import exams as flow
from korrigo_grading.models.exams import Exam as ExamRow
from korrigo_grading.models.exams import Split
from korrigo_kit.clock import rfc3339
from korrigo_kit.rest import (
    Caller,
    Idempotency,
    IdempotencyKey,
    IfMatch,
    Page,
    decode_cursor,
    encode_cursor,
    etag,
    require_match,
    room_runtime,
)
from korrigo_kit.rest.paging import Cursor, Limit
from korrigo_kit.room import Runtime

api = APIRouter(prefix="/api/exams", tags=["exams"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]
# A JSON number with at most two decimals; never a string, never NaN.
Points = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=999999.99)]
MaxScore = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=999999.99)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SplitConfig(_Closed):
    """How the scans of an exam are cut."""

    mode: Literal["A3_to_A4", "A4_single", "custom"] = Field(
        description="A3 sheets that hold two pages a side, or A4 pages; `custom` comes later."
    )
    pages_per_booklet: int = Field(4, strict=True, ge=0, le=500, description="0 = the whole PDF is one copy.")
    split_horizontal: bool = Field(
        True, strict=True, description="True = A3 sheets are cut into left and right halves."
    )


class QuestionNode(_Closed):
    """A question; one with children is worth the sum of theirs."""

    id: str = Field(min_length=1, max_length=scheme.MAX_ID_LENGTH, description="Chosen by the client; must stay.")
    label: str = Field(min_length=1, max_length=scheme.MAX_LABEL_LENGTH)
    points: Points | None = Field(None, description="At most two decimals; needed where there are no children.")
    children: list[QuestionNode] | None = None


class NewExam(_Closed):
    """An exam to make."""

    name: str = Field(min_length=1, max_length=255)
    date: datetime.date
    split_config: SplitConfig | None = Field(None, description="Default: A3_to_A4, 4 pages, cut in halves.")
    grading_structure: list[QuestionNode] = Field(
        min_length=1, max_length=scheme.MAX_NODES, description="The points of the leaves sum to max_score."
    )
    max_score: MaxScore = Field(flow.DEFAULT_MAX_SCORE)
    auto_validate: bool = Field(False, strict=True, description="True = READY without a person when nothing is open.")
    corrector_ids: list[UUID] = Field(default_factory=list, max_length=1000, description="Accounts that may mark.")


class ExamPatch(_Closed):
    """What to change of an exam; what is left out stays."""

    name: str | None = Field(None, min_length=1, max_length=255)
    date: datetime.date | None = None
    split_config: SplitConfig | None = None
    grading_structure: list[QuestionNode] | None = Field(None, min_length=1, max_length=scheme.MAX_NODES)
    max_score: MaxScore | None = None
    auto_validate: bool | None = Field(None, strict=True)
    corrector_ids: list[UUID] | None = Field(None, max_length=1000)


class Question(BaseModel):
    """A question of the marking scheme."""

    id: str
    label: str
    points: int | float = Field(description="Points; of a question with children their sum.")
    children: list[Question] | None = Field(None, exclude_if=lambda children: children is None)


class Exam(BaseModel):
    """An exam."""

    id: UUID
    name: str
    date: datetime.date
    split_config: SplitConfig
    pages_per_booklet: int = Field(description="The same as in split_config.")
    grading_structure: list[Question]
    max_score: int | float
    auto_validate: bool
    corrector_ids: list[UUID]
    created_at: str = Field(description="RFC 3339, UTC.")
    updated_at: str = Field(description="RFC 3339, UTC.")
    version: int = Field(description="Also the ETag.")


def _document(exam: ExamRow) -> dict[str, Any]:
    return {
        "id": exam.id,
        "name": exam.name,
        "date": exam.date.isoformat(),
        "split_config": {
            "mode": exam.split.mode,
            "pages_per_booklet": exam.split.pages_per_booklet,
            "split_horizontal": exam.split.split_horizontal,
        },
        "pages_per_booklet": exam.split.pages_per_booklet,
        "grading_structure": scheme.document(exam.questions),
        "max_score": scheme.number(exam.max_hundredths),
        "auto_validate": exam.auto_validate,
        "corrector_ids": list(exam.corrector_ids),
        "created_at": rfc3339(exam.created_at),
        "updated_at": rfc3339(exam.updated_at),
        "version": exam.version,
    }


def _split(config: SplitConfig | None) -> Split | None:
    return None if config is None else Split(config.mode, config.pages_per_booklet, config.split_horizontal)


def _wish(body: NewExam | ExamPatch) -> flow.Wish:
    structure = body.grading_structure
    return flow.Wish(
        name=body.name,
        date=body.date,
        split=_split(body.split_config),
        grading_structure=None if structure is None else [node.model_dump() for node in structure],
        max_score=body.max_score,
        auto_validate=body.auto_validate,
        corrector_ids=None if body.corrector_ids is None else [str(id) for id in body.corrector_ids],
    )


def _answer(document: Mapping[str, Any], response: Response) -> Exam:
    response.headers["ETag"] = etag(document["version"])
    return Exam.model_validate(document)


@api.post("", status_code=201)
def create_exam(
    body: NewExam, caller: Caller, rt: Rt, response: Response, idempotency_key: IdempotencyKey = None
) -> Exam:
    """Make an exam; admins only."""
    caller.require("admin")
    request = Idempotency(idempotency_key, caller.user_id, "create_exam", body.model_dump(mode="json"))
    document = request.replay(rt.db)
    if document is None:
        made = flow.create(rt, caller, _wish(body), lambda tx, exam: request.store(tx, _document(exam), 201))
        document = _document(made)
    response.headers["Location"] = f"/api/exams/{document['id']}"
    return _answer(document, response)


@api.get("")
def list_exams(caller: Caller, rt: Rt, limit: Limit = 100, cursor: Cursor = None) -> Page[Exam]:
    """List the exams, newest first; a marker sees those that he marks."""
    after = decode_cursor(cursor, str, str)
    found = flow.page(rt, caller, (after[0], after[1]) if after else None, limit + 1)
    items = [Exam.model_validate(_document(exam)) for exam in found[:limit]]
    last = found[limit - 1] if len(found) > limit else None
    return Page(items=items, next_cursor=encode_cursor(rfc3339(last.created_at), last.id) if last else None)


@api.get("/{exam_id}")
def read_exam(exam_id: UUID, caller: Caller, rt: Rt, response: Response) -> Exam:
    """Read an exam; one that is not the caller's does not exist for him."""
    return _answer(_document(flow.read(rt, caller, str(exam_id))), response)


@api.patch("/{exam_id}")
def change_exam(
    exam_id: UUID, body: ExamPatch, caller: Caller, rt: Rt, response: Response, if_match: IfMatch = None
) -> Exam:
    """Change an exam; admins only. If-Match is honoured when it is sent (412).

    409 EXAM_HAS_COPIES: split_config is fixed by the first copy, the scheme by the first that is being marked.
    """

    def approve(current: ExamRow) -> None:
        if if_match is not None:
            require_match(if_match, current.version, _document(current))

    return _answer(_document(flow.change(rt, caller, str(exam_id), _wish(body), approve)), response)
