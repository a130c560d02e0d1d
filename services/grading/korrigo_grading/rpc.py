"""gRPC face of grading: what other rooms may ask now, and the acts of healing that are its (kit.interventions)."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

import grpc

from korrigo_grading.flows import accounts, alerting, exams, finalize, locking, recovering
from korrigo_grading.flows.recovering import Undone
from korrigo_grading.models.alerts import Alert, Group
from korrigo_kit import inbox, operations
from korrigo_kit.auth import Principal
from korrigo_kit.errors import NotFound
from korrigo_kit.interventions import Asked, Deed, Item, Order, Verb
from korrigo_kit.room import Runtime
from korrigo_kit.rpc import caller
from korrigo_protos.grading.v1 import grading_pb2, grading_pb2_grpc

_RENDER_SECONDS = 20
# What one message holds well below its limit of 1 MiB.
_MOST_GROUPS = 100
_MOST_ALERTS = 50
_MESSAGE_BYTES = 900_000


class ExamService(grading_pb2_grpc.ExamServiceServicer):
    """Exams, for the room that imports into them."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def GetExam(
        self, request: grading_pb2.GetExamRequest, context: grpc.ServicerContext
    ) -> grading_pb2.GetExamResponse:
        """Tell how an exam cuts its scans; refuses a person who may not upload."""
        exam = exams.read_for_import(self._rt, caller(), request.exam_id)
        return grading_pb2.GetExamResponse(
            exam_id=exam.id,
            split_mode=exam.split.mode,
            pages_per_booklet=exam.split.pages_per_booklet,
            split_horizontal=exam.split.split_horizontal,
            version=exam.version,
            corrector_ids=exam.corrector_ids,
        )


class AccountService(grading_pb2_grpc.AccountServiceServicer):
    """Accounts, for rooms that have to know whether somebody may approve an act."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def GetAccount(
        self, request: grading_pb2.GetAccountRequest, context: grpc.ServicerContext
    ) -> grading_pb2.GetAccountResponse:
        """Find an account by id or user name; raises NotFound (USER_NOT_FOUND)."""
        try:
            found = accounts.read(self._rt, str(uuid.UUID(request.account)))
        except ValueError:
            found = accounts.by_name(self._rt, request.account)
        return grading_pb2.GetAccountResponse(account_id=found.id, is_active=found.is_active, roles=found.roles)


class AlertService(grading_pb2_grpc.AlertServiceServicer):
    """Alerts, for the operator that writes the incidents of a cluster."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def ListAlertGroups(
        self, request: grading_pb2.ListAlertGroupsRequest, context: grpc.ServicerContext
    ) -> grading_pb2.ListAlertGroupsResponse:
        """List episodes of groups of alerts, newest first, as many as one message holds."""
        limit = min(request.limit or _MOST_GROUPS, _MOST_GROUPS)
        groups, unknown = alerting.newest(self._rt, limit, request.ids[:_MOST_GROUPS])
        answer = grading_pb2.ListAlertGroupsResponse(unknown_ids=unknown)
        size = 0
        for group in groups:
            told = _group(group)
            size += told.ByteSize()
            if size > _MESSAGE_BYTES:
                break
            answer.groups.append(told)
        return answer


def _group(group: Group) -> grading_pb2.AlertGroup:
    return grading_pb2.AlertGroup(
        id=group.id,
        started_at_ms=_ms(group.started_at),
        ended_at_ms=_ms(group.ended_at),
        alerts=[_alert(alert) for alert in group.alerts[:_MOST_ALERTS]],
        left_out=group.left_out + max(0, len(group.alerts) - _MOST_ALERTS),
    )


def _alert(alert: Alert) -> grading_pb2.Alert:
    return grading_pb2.Alert(
        started_at_ms=_ms(alert.started_at),
        ended_at_ms=_ms(alert.ended_at),
        labels=alert.labels,
        annotations=alert.annotations,
    )


def _ms(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment else 0


def verbs(rt: Runtime) -> Mapping[str, Verb]:
    """Tell how grading heals: final PDFs again, and locks that hold copies back."""
    return {
        "RetryFinalize": Verb(("copy", "exam", "all"), partial(_undone, rt), partial(_retry, rt)),
        "ForceUnlock": Verb(("copy",), partial(_lock, rt), partial(_unlock, rt), _is_live),
        "ReleaseExpiredLocks": Verb(("copy", "all"), partial(_ended, rt), partial(_release, rt)),
    }


def _principal(order: Order) -> Principal:
    return Principal(order.actor_id, "", ("admin",))


# ---------------------------------------------------------------------------------------------- final PDFs
def _undone(rt: Runtime, order: Order) -> Sequence[Item]:
    if order.kind == "copy":
        found = [recovering.undone_copy(rt, order.id)]
    else:
        found = recovering.undone(rt, order.id if order.kind == "exam" else None)
    notes = {"GRADING_FAILED": "would be asked for again", "GRADING_IN_PROGRESS": "would be looked for and rung again"}
    return [
        Item("copy", copy.copy_id, _mark(copy), notes.get(copy.status, f"is {copy.status}: nothing to do"))
        for copy in found
    ]


def _mark(copy: Undone) -> str:
    return f"{copy.status}/{copy.revision}/{copy.request}"


def _retry(rt: Runtime, order: Order, item: Item) -> Deed:
    copy = recovering.undone_copy(rt, item.subject_id)
    if _mark(copy) != item.mark:
        return Deed(True, f"is {copy.status} by now: nothing to do")
    if copy.status == "GRADING_FAILED":
        finalize.retry(rt, _principal(order), copy.copy_id, lambda _tx, _done: None)
        return Deed(True, "its final PDF was asked for again")
    if copy.status != "GRADING_IN_PROGRESS":
        return Deed(True, f"is {copy.status}: nothing to do")
    return _look_for(rt, order, copy)


def _look_for(rt: Runtime, order: Order, copy: Undone) -> Deed:
    """Have render go on with what it has, or fetch what was lost on the way between the rooms."""
    # A uid of its own for every copy and request, the same however often this one is asked for.
    uid = hashlib.sha256(f"{order.uid}|{copy.copy_id}|{copy.revision}|{copy.request}".encode()).hexdigest()[:40]
    asked = Asked(uid, "RetryFinalize", "copy", copy.copy_id, order.reason, actor=order.actor_id)
    answer = operations.intervene(rt.channels, asked, room="render", seconds=_RENDER_SECONDS)
    for subscription in rt.room.subscriptions(rt):
        if subscription.source == "render":
            with rt.db.transaction() as tx:
                inbox.forget_looks(tx, subscription.source, ())
            inbox.catch_up(rt.db, subscription, rt.channels)
    note = answer.items[0].note if answer.items else "render knows nothing of it"
    return Deed(answer.state == "SUCCEEDED", note)


# ---------------------------------------------------------------------------------------------- locks
def _lock(rt: Runtime, order: Order) -> Sequence[Item]:
    lock = locking.held(rt, order.id)
    if lock is None:
        return []
    is_free = not lock.is_live or locking.is_stale(rt, lock)
    word = "over or silent" if is_free else "live"
    what = f"would end the lock of account {lock.owner_id}, which is {word}"
    return [Item("copy", order.id, f"{lock.fence}/{word}", what)]


def _is_live(_: Order, items: Sequence[Item]) -> bool:
    """Ask for a second admin when somebody is at work: he will lose his place."""
    return any(item.mark.endswith("/live") for item in items)


def _unlock(rt: Runtime, order: Order, item: Item) -> Deed:
    try:
        locking.force(rt, _principal(order), item.subject_id, order.reason, fence=int(item.mark.partition("/")[0]))
    except NotFound as error:
        if error.reason != "LOCK_MISSING":
            raise
        return Deed(True, "that lock had ended by itself")
    return Deed(True, "unlocked")


def _ended(rt: Runtime, order: Order) -> Sequence[Item]:
    found = locking.ended(rt)
    wanted = [copy_id for copy_id in found if order.kind == "all" or copy_id == order.id]
    return [Item("copy", copy_id, what="would be unlocked: its lease is over, or its lock gone") for copy_id in wanted]


def _release(rt: Runtime, order: Order, item: Item) -> Deed:
    is_done = locking.end_lease(rt, item.subject_id)
    return Deed(True, "unlocked" if is_done else "had ended by itself")
