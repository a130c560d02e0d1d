"""The audit trail over HTTP, for admins, lead markers and auditors."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from korrigo_audit.flows import listing
from korrigo_kit.errors import NotFound
from korrigo_kit.rest import Caller, Page, decode_cursor, encode_cursor, room_runtime
from korrigo_kit.rest.paging import Cursor, Limit
from korrigo_kit.room import Runtime

api = APIRouter(prefix="/api/audit", tags=["audit"])
Rt = Annotated[Runtime, Depends(room_runtime("audit"))]


class AuditEvent(BaseModel):
    """One act, as its room wrote it."""

    seq: int = Field(description="Number within the stream, in causal order; technical events leave holes.")
    action: str = Field(description="What was done: the nine actions and the extension set.")
    actor_id: str = Field(description="Account that did it; the system account for what nobody did.")
    timestamp: str = Field(description="When, by the clock of the source's database (RFC 3339, UTC).")
    created_at: str = Field(description="The same moment under its second name.")
    metadata: dict[str, Any] = Field(description="Facts of the action; texts only as commitments.")
    request_id: str = Field(description="Request that caused it.")
    leaf_hash: str = Field(description="Hexadecimal SHA-256 of the leaf.")
    subject_type: str = Field(description="Kind of the stream.")
    subject_id: str = Field(description="Subject of the stream.")
    source: str = Field(description="Room that wrote it.")
    source_seq: int = Field(description="Its number among that room's events in the stream.")


def _event(row: dict[str, Any]) -> AuditEvent:
    return AuditEvent(
        timestamp=row["at"],
        created_at=row["at"],
        **{key: row[key] for key in AuditEvent.model_fields if key in row},
    )


@api.get("/copies/{copy_id}")
def list_copy_events(
    copy_id: UUID, caller: Caller, rt: Rt, limit: Limit = 200, cursor: Cursor = None
) -> Page[AuditEvent]:
    """List the acts on a copy in order, from every room."""
    caller.require("admin", "auditor", "lead_marker")
    after = decode_cursor(cursor, int)
    rows = listing.of_subject(rt.db, "copy", str(copy_id), after_seq=after[0] if after else 0, limit=limit + 1)
    if rows is None:
        raise NotFound("COPY_NOT_FOUND", "no event tells of such a copy")
    items = [_event(row) for row in rows[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].seq) if len(rows) > limit else None)


@api.get("/events")
def list_events(
    caller: Caller,
    rt: Rt,
    since: Annotated[datetime | None, Query(description="Earliest moment (RFC 3339).")] = None,
    action: Annotated[str | None, Query(max_length=40, description="Only this action.")] = None,
    limit: Limit = 200,
    cursor: Cursor = None,
) -> Page[AuditEvent]:
    """List acts of every stream, oldest first."""
    caller.require("admin", "auditor")
    after = decode_cursor(cursor, str, str)
    rows = listing.of_all(
        rt.db, since=since, action=action, after=(after[0], after[1]) if after else None, limit=limit + 1
    )
    items = [_event(row) for row in rows[:limit]]
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(items=items, next_cursor=encode_cursor(last["happened_at"].isoformat(), last["id"]) if last else None)


routers = (api,)
