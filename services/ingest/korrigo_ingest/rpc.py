"""gRPC face of ingest: scans, and the acts of healing that are ingest's (kit.interventions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import grpc

from korrigo_ingest.flows import clearing, reading, retrying
from korrigo_ingest.flows.retrying import Import
from korrigo_kit.errors import NotFound
from korrigo_kit.interventions import Deed, Item, Order, Verb
from korrigo_kit.room import Runtime
from korrigo_protos.ingest.v1 import ingest_pb2, ingest_pb2_grpc


class ScanService(ingest_pb2_grpc.ScanServiceServicer):
    """Scans, for other rooms and operators."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def GetScan(self, request: ingest_pb2.GetScanRequest, context: grpc.ServicerContext) -> ingest_pb2.GetScanResponse:
        """Tell the state of a scan; raises NotFound (SCAN_NOT_FOUND)."""
        row = reading.scan(self._rt.db, request.scan_id)
        return ingest_pb2.GetScanResponse(
            scan_id=row["id"],
            exam_id=row["exam_id"],
            state=row["state"],
            reason=row["error_reason"] or "",
            copy_ids=row["copy_ids"],
        )


def verbs(rt: Runtime) -> Mapping[str, Verb]:
    """Tell how ingest heals: imports again, and what crashes left behind."""
    return {
        "RetryImport": Verb(("scan", "copy", "exam", "all"), partial(_imports, rt), partial(_retry, rt)),
        "CleanupTempFiles": Verb(("all",), partial(_leftovers, rt), partial(_clean, rt)),
    }


def _imports(rt: Runtime, order: Order) -> Sequence[Item]:
    return [_item(found) for found in _asked_for(rt, order)]


def _asked_for(rt: Runtime, order: Order) -> Sequence[Import]:
    if order.kind == "scan":
        return [retrying.of_scan(rt, order.id)]
    if order.kind == "copy":
        found = retrying.of_copies(rt, [order.id]).get(order.id)
        if found is None:
            raise NotFound("COPY_NOT_FOUND", "no import made this copy")
        return [found]
    return retrying.open_ones(rt, order.id if order.kind == "exam" else None)


def _item(found: Import) -> Item:
    if found.may_be_retried:
        what = "would be tried again"
    elif found.state == "REJECTED":
        what = "was refused, and would be again"
    else:
        what = "would be rung for again" if found.job_state == "READY" else f"is {found.state}: nothing to do"
    return Item("scan", found.id, _mark(found), what)


def _mark(found: Import) -> str:
    return f"{found.state}/{found.job_state}/{found.updated_at.isoformat()}"


def _retry(rt: Runtime, order: Order, item: Item) -> Deed:
    found = retrying.of_scan(rt, item.subject_id)
    if _mark(found) != item.mark:
        return Deed(True, f"is {found.state} by now: nothing to do")
    if found.may_be_retried:
        retrying.retry(rt, found.id, order.actor_id)
        return Deed(True, "is tried again")
    if found.state == "REJECTED":
        return Deed(False, f"the document was refused ({found.error_reason}): it needs another file")
    if retrying.ring(rt, found.id, order.actor_id):
        return Deed(True, "was rung for again")
    return Deed(True, f"is {found.state}: nothing to do")


def _leftovers(rt: Runtime, order: Order) -> Sequence[Item]:
    cleared = clearing.clear(rt, is_dry_run=True)
    if not cleared.paths:
        return []
    what = f"would remove {len(cleared.paths)} files and folders, {cleared.bytes >> 20} MB"
    return [Item("system", "system", what=what)]


def _clean(rt: Runtime, order: Order, item: Item) -> Deed:
    cleared = clearing.clear(rt, is_dry_run=False, actor_id=order.actor_id)
    return Deed(True, f"removed {len(cleared.paths)} files and folders, {cleared.bytes >> 20} MB")
