"""Copies over HTTP: the lists, one copy, and finding them complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from korrigo_grading.domain import access, scheme
from korrigo_grading.flows import reading, validation
from korrigo_grading.models.assemblies import PageRow
from korrigo_grading.models.copies import Copy as CopyRow
from korrigo_kit.auth import Principal
from korrigo_kit.clock import rfc3339
from korrigo_kit.rest import Caller, Page, decode_cursor, encode_cursor, etag, room_runtime
from korrigo_kit.rest.paging import Cursor, Limit
from korrigo_kit.room import Runtime

api = APIRouter(tags=["copies"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]
Status = Literal["STAGING", "READY", "LOCKED", "GRADING_IN_PROGRESS", "GRADING_FAILED", "GRADED"]


class CopyPage(BaseModel):
    """A page of a copy as displayed."""

    page_id: UUID
    index: int = Field(description="Position in the copy, from 0.")
    width: float = Field(description="Points, after CropBox and rotation.")
    height: float = Field(description="Points.")
    image_url: str = Field(description="Opaque; changes with the picture, another for those who see it masked.")


class Copy(BaseModel):
    """A copy; nothing in it says whose it is."""

    id: UUID
    exam_id: UUID
    anonymous_id: str
    status: Status
    version: int = Field(description="Also the ETag.")
    revision: int = Field(description="From 1; grows when a graded copy is taken back.")
    pages: list[CopyPage]
    assigned_corrector_id: UUID | None
    grading_retries: int = Field(description="Failed attempts of the last request for the final PDF.")
    grading_error_message: str | None
    final_score: float | int | None
    created_at: str = Field(description="RFC 3339, UTC.")
    updated_at: str = Field(description="RFC 3339, UTC.")
    graded_at: str | None = Field(description="RFC 3339, UTC.")


class Validation(BaseModel):
    """How to validate."""

    model_config = ConfigDict(extra="forbid")
    override_anomalies: bool = Field(False, strict=True, description="True = in spite of unresolved anomalies.")
    reason: str | None = Field(None, max_length=2000, description="Why; needed to override.")


class Skipped(BaseModel):
    """A copy that was not validated."""

    copy_id: UUID
    reason: str


class ValidationReport(BaseModel):
    """What became of an exam's staged copies."""

    validated: list[UUID]
    skipped: list[Skipped]


def document(copy: CopyRow, pages: Sequence[PageRow], caller: Principal) -> Copy:
    """Write a copy as its caller may see it."""
    is_unmasked = access.sees_identity(caller.roles)
    values: dict[str, Any] = {name: getattr(copy, name) for name in Copy.model_fields if hasattr(copy, name)}
    values.update(
        pages=[_page(page, is_unmasked) for page in pages],
        final_score=None if copy.final_score is None else scheme.number(copy.final_score),
        created_at=rfc3339(copy.created_at),
        updated_at=rfc3339(copy.updated_at),
        graded_at=rfc3339(copy.graded_at) if copy.graded_at else None,
    )
    return Copy.model_validate(values)


def _page(page: PageRow, is_unmasked: bool) -> dict[str, Any]:
    picture = page.picture_sha256 if is_unmasked else page.masked_picture_sha256
    return {
        "page_id": page.page_id,
        "index": page.page_index,
        "width": page.width,
        "height": page.height,
        "image_url": f"/api/pages/{page.page_id}/image?v={picture[:12]}",
    }


@api.get("/api/exams/{exam_id}/copies")
def list_copies(
    exam_id: UUID,
    caller: Caller,
    rt: Rt,
    status: Annotated[Status | None, Query(description="Only copies of this status.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[Copy]:
    """List an exam's copies, oldest first; a marker sees those assigned to him or to nobody."""
    after = decode_cursor(cursor, str, str)
    found = reading.page(rt, caller, str(exam_id), status, (after[0], after[1]) if after else None, limit + 1)
    items = [document(copy, pages, caller) for copy, pages in found[:limit]]
    last = items[-1] if len(found) > limit else None
    return Page(items=items, next_cursor=encode_cursor(last.created_at, str(last.id)) if last else None)


@api.get("/api/copies/{copy_id}")
def read_copy(copy_id: UUID, caller: Caller, rt: Rt, response: Response) -> Copy:
    """Read a copy; one that is not the caller's does not exist for him."""
    copy, pages = reading.read(rt, caller, str(copy_id))
    response.headers["ETag"] = etag(copy.version)
    return document(copy, pages, caller)


@api.post("/api/copies/{copy_id}/validate")
def validate_copy(copy_id: UUID, caller: Caller, rt: Rt, response: Response, body: Validation | None = None) -> Copy:
    """Find a staged copy complete: it becomes READY.

    409 INVALID_STATUS, NO_PAGES, UNRESOLVED_ANOMALIES (override_anomalies with a reason goes over them).
    """
    wish = body or Validation.model_validate({})
    validation.validate(rt, caller, str(copy_id), override_anomalies=wish.override_anomalies, reason=wish.reason)
    return read_copy(copy_id, caller, rt, response)


@api.post("/api/exams/{exam_id}/validate-all")
def validate_all(exam_id: UUID, caller: Caller, rt: Rt) -> ValidationReport:
    """Validate every staged copy of an exam that nothing speaks against; tells which and why not the others."""
    report = validation.validate_all(rt, caller, str(exam_id))
    skipped = [Skipped(copy_id=UUID(copy_id), reason=reason) for copy_id, reason in report.skipped]
    return ValidationReport(validated=[UUID(copy_id) for copy_id in report.validated], skipped=skipped)
