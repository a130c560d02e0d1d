"""A copy comes in from ingest: staged, assembled, maybe validated at once, maybe withdrawn later.

Started by the consumer; each handler runs in the transaction that notes the event as applied.

    copy_staged     -> row in STAGING (the IMPORT act is ingest's)
    copy_assembled  -> pages, booklets and anomalies replaced; READY when the exam says so and nothing is open
    copy_withdrawn  -> tombstone
"""

from __future__ import annotations

import logging

from korrigo_grading.domain import statuses
from korrigo_grading.events import copies as events
from korrigo_grading.models import assemblies, copies
from korrigo_kit.db import Tx
from korrigo_kit.room import add_blob_ref
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.ingest.v1 import events_pb2

log = logging.getLogger("grading")


def on_copy_staged(tx: Tx, event: event_pb2.Event) -> None:
    """Insert the copy; a second telling changes nothing."""
    told = events_pb2.CopyStaged.FromString(event.payload)
    assemblies.stage(
        tx,
        copy_id=told.copy_id,
        exam_id=told.exam_id,
        anonymous_id=told.anonymous_id,
        created_by=told.created_by,
    )


def on_copy_assembled(tx: Tx, event: event_pb2.Event) -> None:
    """Replace the pages by a higher assembly; validate when the exam does so by itself."""
    told = events_pb2.CopyAssembled.FromString(event.payload)
    copy = copies.hold(tx, told.copy_id, even_deleted=True)
    if copy is None:
        log.error("pages came for a copy that was never staged", extra={"copy_id": told.copy_id})
        return
    is_new = assemblies.replace(
        tx,
        copy.id,
        assembly=told.assembly,
        source_sha256=told.source_sha256,
        source_size=told.source_size,
        pages=[_page(page) for page in told.pages],
        booklets=[_booklet(booklet) for booklet in told.booklets],
        anomalies=[
            {"code": item.code, "scan_page": item.scan_page, "is_resolved": item.is_resolved} for item in told.anomalies
        ],
    )
    if not is_new:
        return
    add_blob_ref(tx, told.source_sha256, "copy_source", f"{copy.id}/{told.assembly}")
    if copy.status not in (statuses.STAGING, statuses.READY):
        log.warning("a copy changed while it was %s", copy.status, extra={"copy_id": copy.id})
    if not _validate_by_itself(tx, copy, len(told.pages), event.source_seq):
        # Told all the same: ingest calls a scan done once its copies can be seen here.
        events.status_changed(tx, copy, copy.status, action=None, metadata={"after": {"ingest": event.source_seq}})


def _page(page: events_pb2.Page) -> dict[str, object]:
    return {
        "page_id": page.page_id,
        "index": page.index,
        "width": page.width,
        "height": page.height,
        "is_masked": page.is_masked,
        "picture_sha256": page.picture_sha256,
        "masked_picture_sha256": page.masked_picture_sha256,
        "scan_id": page.scan_id,
    }


def _booklet(booklet: events_pb2.Booklet) -> dict[str, object]:
    return {
        "booklet_id": booklet.booklet_id,
        "position": booklet.position,
        "start_page": booklet.start_page,
        "end_page": booklet.end_page,
        "page_ids": list(booklet.page_ids),
    }


def _validate_by_itself(tx: Tx, copy: copies.Copy, pages: int, source_seq: int) -> bool:
    if not copy.auto_validate or not statuses.can("validate", copy.status) or pages == 0:
        return False
    if copies.blocking_anomalies(tx, copy.id):
        return False
    status = statuses.after("validate", copy.status)
    copies.validated(tx, copy, status)
    events.status_changed(
        tx,
        copy,
        status,
        action="VALIDATE",
        metadata={"pages": pages, "anomalies_overridden": [], "after": {"ingest": source_seq}},
    )
    return True


def on_copy_withdrawn(tx: Tx, event: event_pb2.Event) -> None:
    """Tombstone a copy that ingest emptied; the copies that carry its pages now come as copies of their own."""
    told = events_pb2.CopyWithdrawn.FromString(event.payload)
    if copies.hold(tx, told.copy_id) is not None:
        assemblies.withdraw(tx, told.copy_id)
