"""Scores over HTTP; values are checked by `domain.scores`, with its reasons."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from korrigo_grading.domain import scheme
from korrigo_grading.domain import scores as rules
from korrigo_grading.flows import scoring as flow
from korrigo_grading.rest.locks import LockToken
from korrigo_kit.rest import Caller, IfMatch, etag, require_match, room_runtime
from korrigo_kit.room import Runtime

api = APIRouter(prefix="/api/copies/{copy_id}/scores", tags=["scores"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]
_VALUE = 'A number from 0 to the question\'s maximum, exact to 0.01; null = not marked; "NT" = not attempted.'


class ScoresWish(BaseModel):
    """What to write; fields and questions left out stay, null clears."""

    model_config = ConfigDict(extra="forbid")
    scores: dict[str, Any] = Field(default_factory=dict, max_length=500, description=_VALUE)
    appreciation: str | None = Field(None, max_length=flow.MAX_APPRECIATION_LENGTH)


class QuestionScore(BaseModel):
    """A question with what it comes to."""

    id: str
    label: str
    max: float | int
    score: float | int | str | None = Field(description=_VALUE)


class Scores(BaseModel):
    """The marks of a copy."""

    scores: dict[str, float | int | str | None] = Field(description="What was written, by question.")
    questions: list[QuestionScore] = Field(description="Every question, scores from annotations included.")
    total: float | int
    max_score: float | int
    complete: bool = Field(description='True = every question has a score or "NT".')
    appreciation: str | None
    version: int = Field(description="Also the ETag; 0 before the first write.")


def _document(marks: flow.Marks) -> dict[str, Any]:
    sheet = marks.sheet
    return {
        "scores": {line.id: rules.public(marks.written.scores.get(line.id)) for line in sheet.lines},
        "questions": [
            {
                "id": line.id,
                "label": line.label,
                "max": scheme.number(line.max_hundredths),
                "score": rules.public(line.score),
            }
            for line in sheet.lines
        ],
        "total": scheme.number(sheet.total),
        "max_score": scheme.number(sheet.maximum),
        "complete": sheet.is_complete,
        "appreciation": marks.written.appreciation,
        "version": marks.written.version,
    }


def _answer(marks: flow.Marks, response: Response) -> Scores:
    response.headers["ETag"] = etag(marks.written.version)
    return Scores.model_validate(_document(marks))


@api.get("")
def read_scores(copy_id: UUID, caller: Caller, rt: Rt, response: Response) -> Scores:
    """Read the marks of a copy."""
    return _answer(flow.read(rt, caller, str(copy_id)), response)


@api.put("")
def write_scores(
    copy_id: UUID,
    body: ScoresWish,
    caller: Caller,
    rt: Rt,
    response: Response,
    x_lock_token: LockToken = None,
    if_match: IfMatch = None,
) -> Scores:
    """Write scores on a copy whose lock the caller holds; 428 without If-Match, 412 when they changed meanwhile."""
    marks = flow.write(
        rt,
        caller,
        str(copy_id),
        x_lock_token,
        body.model_dump(exclude_unset=True),
        lambda marks: require_match(if_match, marks.written.version, _document(marks)),
    )
    return _answer(marks, response)
