"""Annotations over HTTP. Numbers are taken as they come and checked by `domain.annotations`, with its reasons."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from korrigo_grading.flows import annotating as flow
from korrigo_grading.models.annotations import Annotation as AnnotationRow
from korrigo_grading.rest.locks import LockToken
from korrigo_kit.clock import rfc3339
from korrigo_kit.rest import (
    Caller,
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

api = APIRouter(prefix="/api/copies/{copy_id}/annotations", tags=["annotations"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]
_MAX_INDEX = 100_000
# Checked by the domain, so that a string or NaN is INVALID_COORDINATES like every other wrong place.
Fraction = Annotated[Any, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Delta = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "number", "multipleOf": 0.25}, {"type": "null"}]})]
StrictNumber = Annotated[float, Field(strict=True)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Stroke(_Closed):
    """One pen stroke."""

    width: StrictNumber = Field(description="Points of the page.")
    points: list[list[StrictNumber]] = Field(description="[x, y] or [x, y, pressure], fractions of the displayed page.")


class NewAnnotation(_Closed):
    """An annotation to make; `page_index` or `page_id` is needed."""

    id: UUID | None = Field(None, description="Chosen by the client, so that a repetition is the same annotation.")
    page_index: int | None = Field(None, strict=True, ge=0, le=_MAX_INDEX)
    page_id: UUID | None = None
    x: Fraction = Field(description="Left edge, fraction of the displayed page.")
    y: Fraction = Field(description="Top edge.")
    w: Fraction = Field(description="Width; x + w is at most 1.")
    h: Fraction = Field(description="Height; y + h is at most 1.")
    type: str = Field(max_length=40, description="COMMENT, HIGHLIGHT, ERROR, BONUS, TEXT, INK or STAMP.")
    content: str = Field("", max_length=10_000)
    score_delta: Delta = Field(None, description="Points, a multiple of 0.25.")
    question_id: str | None = Field(
        None, max_length=64, description="Question of the scheme that the delta counts for."
    )
    strokes: list[Stroke] | None = Field(None, description="Of an INK annotation.")


class AnnotationPatch(_Closed):
    """What to change; what is left out stays."""

    page_index: int | None = Field(None, strict=True, ge=0, le=_MAX_INDEX)
    page_id: UUID | None = None
    x: Fraction = None
    y: Fraction = None
    w: Fraction = None
    h: Fraction = None
    type: str | None = Field(None, max_length=40)
    content: str | None = Field(None, max_length=10_000)
    score_delta: Delta = None
    question_id: str | None = Field(None, max_length=64)
    strokes: list[Stroke] | None = None


class Annotation(BaseModel):
    """An annotation."""

    id: UUID
    page_index: int | None = Field(description="null when its page left the copy.")
    page_id: UUID
    x: float
    y: float
    w: float
    h: float
    type: str
    content: str
    score_delta: float | int | None
    question_id: str | None
    strokes: list[dict[str, Any]] | None
    created_by: UUID
    created_at: str = Field(description="RFC 3339, UTC.")
    updated_at: str = Field(description="RFC 3339, UTC.")
    version: int = Field(description="Also the ETag.")


def _document(row: AnnotationRow) -> dict[str, Any]:
    shown = flow.document(row)
    shown.update(created_at=rfc3339(row.created_at), updated_at=rfc3339(row.updated_at))
    return shown


def _answer(row: AnnotationRow, response: Response) -> Annotation:
    response.headers["ETag"] = etag(row.version)
    return Annotation.model_validate(_document(row))


def _given(body: BaseModel) -> dict[str, Any]:
    given = body.model_dump(exclude_unset=True)
    for name in ("id", "page_id"):
        if given.get(name) is not None:
            given[name] = str(given[name])
    return given


@api.get("")
def list_annotations(
    copy_id: UUID, caller: Caller, rt: Rt, limit: Limit = 500, cursor: Cursor = None
) -> Page[Annotation]:
    """List a copy's annotations in the order of their making."""
    after = decode_cursor(cursor, str, str)
    found = flow.listed(rt, caller, str(copy_id), (after[0], after[1]) if after else None, limit + 1)
    items = [Annotation.model_validate(_document(row)) for row in found[:limit]]
    last = items[-1] if len(found) > limit else None
    return Page(items=items, next_cursor=encode_cursor(last.created_at, str(last.id)) if last else None)


@api.post(
    "",
    status_code=201,
    responses={200: {"model": Annotation, "description": "It was made before under the same id."}},
)
def create_annotation(
    copy_id: UUID,
    body: NewAnnotation,
    caller: Caller,
    rt: Rt,
    response: Response,
    x_lock_token: LockToken = None,
) -> Annotation:
    """Make an annotation on a copy whose lock the caller holds."""
    made, is_new = flow.create(rt, caller, str(copy_id), x_lock_token, _given(body))
    response.status_code = 201 if is_new else 200
    return _answer(made, response)


@api.patch("/{annotation_id}")
def change_annotation(
    copy_id: UUID,
    annotation_id: UUID,
    body: AnnotationPatch,
    caller: Caller,
    rt: Rt,
    response: Response,
    x_lock_token: LockToken = None,
    if_match: IfMatch = None,
) -> Annotation:
    """Change an annotation; 428 without If-Match, 412 with the current document when it changed meanwhile."""
    changed = flow.change(
        rt,
        caller,
        str(copy_id),
        str(annotation_id),
        x_lock_token,
        lambda row: require_match(if_match, row.version, _document(row)),
        _given(body),
    )
    return _answer(changed, response)


@api.delete("/{annotation_id}", status_code=204)
def delete_annotation(
    copy_id: UUID,
    annotation_id: UUID,
    caller: Caller,
    rt: Rt,
    x_lock_token: LockToken = None,
    if_match: IfMatch = None,
) -> None:
    """Delete an annotation; 428 without If-Match, 412 when it changed meanwhile."""
    flow.delete(
        rt,
        caller,
        str(copy_id),
        str(annotation_id),
        x_lock_token,
        lambda row: require_match(if_match, row.version, _document(row)),
    )
