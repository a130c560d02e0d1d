"""Finalising over HTTP, and the final PDF itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from korrigo_grading.domain.ranges import Range, is_listed, parse
from korrigo_grading.flows import finalize as flow
from korrigo_grading.rest.copies import Copy, read_copy
from korrigo_grading.rest.locks import LockToken, Reason
from korrigo_kit.db import Tx
from korrigo_kit.errors import Invalid
from korrigo_kit.rest import Caller, Idempotency, IdempotencyKey, etag, room_runtime
from korrigo_kit.rest.problems import problem
from korrigo_kit.room import Runtime

api = APIRouter(prefix="/api/copies/{copy_id}", tags=["finalisation"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]


class Nothing(BaseModel):
    """No wishes."""

    model_config = ConfigDict(extra="forbid")


class Requested(BaseModel):
    """A request for a final PDF."""

    copy_id: UUID
    status: Literal["GRADING_IN_PROGRESS"]
    job_id: UUID = Field(description="Id of this request.")


def _document(done: flow.Requested) -> dict[str, str]:
    return {"copy_id": done.copy_id, "status": done.status, "job_id": done.finalisation_id}


def _once(
    rt: Runtime, key: Idempotency, act: Callable[[Callable[[Tx, flow.Requested], None]], flow.Requested]
) -> Requested:
    document = key.replay(rt.db)
    if document is None:
        document = _document(act(lambda tx, done: key.store(tx, _document(done), 202)))
    return Requested.model_validate(document)


@api.post("/finalize", status_code=202)
def finalize_copy(
    copy_id: UUID,
    caller: Caller,
    rt: Rt,
    body: Nothing | None = None,
    x_lock_token: LockToken = None,
    idempotency_key: IdempotencyKey = None,
) -> Requested:
    """Ask for the final PDF of a copy whose lock the caller holds; the lock ends.

    409 SCORE_INCOMPLETE, FINALIZE_IN_PROGRESS, COPY_ALREADY_GRADED.
    """
    key = Idempotency(idempotency_key, caller.user_id, "finalize", str(copy_id))
    return _once(rt, key, lambda remember: flow.request(rt, caller, str(copy_id), x_lock_token, remember))


@api.post("/retry-finalize", status_code=202)
def retry_finalize(
    copy_id: UUID, caller: Caller, rt: Rt, body: Nothing | None = None, idempotency_key: IdempotencyKey = None
) -> Requested:
    """Ask again for a final PDF that failed; admins only."""
    key = Idempotency(idempotency_key, caller.user_id, "retry_finalize", str(copy_id))
    return _once(rt, key, lambda remember: flow.retry(rt, caller, str(copy_id), remember))


@api.post("/reopen")
def reopen_copy(copy_id: UUID, body: Reason, caller: Caller, rt: Rt, response: Response) -> Copy:
    """Take a graded copy back to marking under the next revision; admins only, with a reason."""
    flow.reopen(rt, caller, str(copy_id), body.reason)
    return read_copy(copy_id, caller, rt, response)


@api.get(
    "/final-pdf",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/pdf": {}}, "description": "The whole final PDF."},
        206: {"content": {"application/pdf": {}}, "description": "The part that Range names."},
        304: {"description": "The caller has it."},
        416: {"description": "Range lies outside."},
    },
)
def read_final_pdf(
    copy_id: UUID,
    caller: Caller,
    rt: Rt,
    revision: Annotated[int | None, Query(ge=1, le=1_000_000, description="Default: the last graded one.")] = None,
    range_header: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header(alias="If-None-Match")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range")] = None,
) -> Response:
    """Download the final PDF; its ETag is its SHA-256. Headers are not masked: admins only until release."""
    found = flow.final_pdf(rt, caller, str(copy_id), revision)
    assert found.final_sha256 is not None and found.final_size is not None
    tag, size = etag(found.final_sha256), found.final_size
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="copy-{copy_id}-r{found.revision}.pdf"',
    }
    if is_listed(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    part = parse(range_header, size) if if_range in (None, tag) else None
    if part is not None and part.is_outside:
        refused = problem(Invalid("RANGE_NOT_SATISFIABLE", "the range lies outside of the file", status=416))
        refused.headers.update({"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes", "ETag": tag})
        return refused
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
    whole = part or Range(0, size)
    headers["Content-Length"] = str(whole.end - whole.start)
    return StreamingResponse(
        _bytes(rt, found.final_sha256, part),
        206 if part is not None else 200,
        headers,
        media_type="application/pdf",
    )


def _bytes(rt: Runtime, sha256: str, part: Range | None) -> Iterator[bytes]:
    # Opened here and not at the first chunk, so that a missing blob is an answer and not a torn body.
    return rt.blobs.stream(sha256, part.start, part.end) if part else rt.blobs.stream(sha256)
