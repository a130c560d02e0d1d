"""Uploads, scans and page pictures over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from korrigo_ingest import peers
from korrigo_ingest.flows import accepting, reading, scaling
from korrigo_ingest.settings import UploadSettings
from korrigo_kit.ids import new_id
from korrigo_kit.rest import Caller, Idempotency, IdempotencyKey, receive_upload, room_runtime
from korrigo_kit.room import Runtime

api = APIRouter(tags=["scans"])
Rt = Annotated[Runtime, Depends(room_runtime("ingest"))]

_UPLOADERS = ("admin", "scan_operator")
_READERS = ("admin", "scan_operator", "lead_marker", "auditor")
_PROGRESS_SECONDS = 0.5
# Pictures never change under their name.
_FOREVER = "private, max-age=31536000, immutable"
_MULTIPART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary", "description": "The PDF."}},
                }
            }
        },
    }
}


class Accepted(BaseModel):
    """A scan was accepted; the import goes on in the background."""

    scan_id: str = Field(description="The scan.")
    job_id: str = Field(description="Its import job.")
    copy_ids: list[str] = Field(description="Empty: copies are staged by the job's first step.")


class Anomaly(BaseModel):
    """Something for a person to look at."""

    id: str
    code: str = Field(description="Code of a closed list.")
    copy_id: str | None = Field(description="Copy it touches; null = all copies of the scan.")
    scan_page: int | None = Field(description="Page of the scan, from 0, when it is about one.")
    detail: dict[str, Any]
    is_resolved: bool


class Conservation(BaseModel):
    """Where the half pages are; placed + blank + discarded + unassigned = half_pages."""

    half_pages: int
    placed: int
    blank: int = Field(description="Blank pages that stay in their copy.")
    discarded: int = Field(description="Only a person discards.")
    unassigned: int


class ImportFailure(BaseModel):
    """Why an import ended without its copies."""

    reason: str
    message: str


class Scan(BaseModel):
    """A scan and how far its import is."""

    id: str
    exam_id: str
    state: str = Field(description="RECEIVED, RUNNING, NEEDS_REVIEW, DONE, FAILED or REJECTED.")
    pages: int = Field(description="Pages of the PDF; 0 until they were counted.")
    copy_ids: list[str]
    anomalies: list[Anomaly]
    conservation: Conservation
    error: ImportFailure | None
    attempts: int = Field(description="Attempts that failed by their own work.")
    job_id: str
    filename: str | None = Field(description="The client's name of the file; admins only.")
    size: int
    sha256: str
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


def _scan(row: dict[str, Any], *, is_admin: bool) -> Scan:
    reason = row.pop("error_reason")
    message = row.pop("error_message")
    row["error"] = ImportFailure(reason=reason, message=message or "") if reason else None
    if not is_admin:
        row["filename"] = None
    return Scan(**{key: row[key] for key in Scan.model_fields})


@api.post("/api/scans", status_code=202, response_model=Accepted, openapi_extra=_MULTIPART)
async def upload_scan(
    request: Request,
    exam_id: Annotated[UUID, Query(description="Exam that the copies belong to.")],
    caller: Caller,
    rt: Rt,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload a scan (part `file`, a PDF); its copies appear as the import goes on."""
    caller.require(*_UPLOADERS)
    exam = await run_in_threadpool(peers.exam, rt, str(exam_id))
    spool = scaling.spool(rt)
    accepting.require_room(rt, spool)
    path = spool / f"upload-{new_id()}.pdf"
    try:
        upload = await receive_upload(
            request, field="file", path=path, max_bytes=rt.settings.get(UploadSettings).max_bytes
        )
        idempotency = Idempotency(idempotency_key, caller.user_id, "upload", str(exam_id), upload.sha256)
        answer = await run_in_threadpool(idempotency.replay, rt.db)
        if answer is None:
            await run_in_threadpool(accepting.require_pdf, upload)
            answer = await run_in_threadpool(accepting.accept, rt, upload, exam, caller.user_id, idempotency)
    finally:
        path.unlink(missing_ok=True)
    return JSONResponse(dict(answer), 202, {"Location": f"/api/scans/{answer['scan_id']}"})


@api.get("/api/scans/{scan_id}")
def get_scan(scan_id: UUID, caller: Caller, rt: Rt) -> Scan:
    """Tell how far an import is, what became of every half page, and what needs a person."""
    caller.require(*_READERS)
    return _scan(reading.scan(rt.db, str(scan_id)), is_admin=caller.has("admin"))


@api.get("/api/scans/{scan_id}/events", response_class=StreamingResponse)
def follow_scan(scan_id: UUID, caller: Caller, rt: Rt) -> StreamingResponse:
    """Follow an import as server-sent events: one `scan` event per change, the last with its end state."""
    caller.require(*_READERS)
    first = reading.scan(rt.db, str(scan_id))

    async def changes() -> AsyncIterator[bytes]:
        row, sent = first, b""
        while True:
            is_over = row["state"] in reading.TERMINAL
            told = orjson.dumps(_scan(row, is_admin=caller.has("admin")).model_dump(mode="json"))
            if told != sent:
                yield b"event: scan\ndata: " + told + b"\n\n"
                sent = told
            if is_over:
                return
            await asyncio.sleep(_PROGRESS_SECONDS)
            row = await run_in_threadpool(reading.scan, rt.db, str(scan_id))

    return StreamingResponse(changes(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@api.get(
    "/api/pages/{page_id}/image",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "The picture."}, 304: {"description": "Unchanged."}},
)
def get_page_image(
    page_id: UUID,
    caller: Caller,
    rt: Rt,
    request: Request,
    width: Annotated[int | None, Query(ge=16, le=8000, description="Widest picture wanted, in pixels.")] = None,
    v: Annotated[str | None, Query(max_length=64, description="Version from `image_url`; not looked at.")] = None,
) -> Response:
    """Show a page as displayed; the identity zone is painted over for markers."""
    chosen = reading.picture(rt.db, str(page_id), caller)
    tag = f'"{chosen.sha256[:32]}-{width or 0}"'
    headers = {"ETag": tag, "Cache-Control": _FOREVER, "Vary": "Authorization, Cookie"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if width is not None:
        return FileResponse(scaling.scaled(rt, chosen.sha256, width), media_type="image/jpeg", headers=headers)
    return Response(rt.blobs.read(chosen.sha256), media_type="image/jpeg", headers=headers)


routers = (api,)
