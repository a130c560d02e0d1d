"""Intervention objects: made for automatic acts and for annotations, done by the room that owns the data, once each.

    Pending ─► Running ─► Succeeded | Failed          AwaitingApproval until a second admin's annotation is there

What decides about doing a thing twice is the uid that the room is given: that of the object, or its key. A status that
was never written, because we were killed or the API server was away, is written when the room tells its result again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import datetime

from korrigo_kit.errors import Forbidden, KorrigoError
from korrigo_kit.interventions import OPERATOR, Asked
from korrigo_operator import metrics
from korrigo_operator.asking import Rooms
from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.kinds import InterventionSpec, InterventionStatus
from korrigo_operator.policies import healing, lifecycle
from korrigo_operator.policies.facts import ACT
from korrigo_operator.sweeping import objects, stuck_copies
from korrigo_operator.sweeping.stuck_copies import Reconciled
from korrigo_protos.common.v1.operations_pb2 import InterveneResponse

PLURAL = "interventions"
ORIGIN = "korrigo.io/origin"
STUCK = "korrigo.io/stuck"
ACTION = "korrigo.io/action"
ASKED = "korrigo.io/asked"
REQUESTED_BY = "korrigo.io/requested-by"
APPROVED_BY = "korrigo.io/approved-by"
_VERBS = {"retry": healing.HELPS, "unlock": {"lock": "ForceUnlock"}}
# Acts of one sweep; what is left waits for the next, so that the others are not kept waiting.
_SWEEP_SECONDS = 60.0
_DONE = ("Succeeded", "Failed")


def automatic(cluster: Cluster, reconciled: Reconciled) -> None:
    """Write an Intervention for everything that the policies decided to do something about."""
    for name, (found, decision) in reconciled.decisions.items():
        if decision.verdict != ACT:
            continue
        uid = healing.uid(found, decision.action)
        spec = _spec(decision.action, found.kind, found.id, f"automatic: {decision.message}", key=uid)
        labels = {ORIGIN: "auto", STUCK: name}
        made = cluster.create(PLURAL, "Intervention", {"name": uid, "labels": labels}, spec)
        if made is not None:
            cluster.patch(stuck_copies.PLURAL, name, {"status": {"intervention": uid}}, part="status")


def scheduled(cluster: Cluster, action: str, now: datetime, reason: str) -> None:
    """Write an Intervention about everything, one an hour at most."""
    uid = f"auto-{hashlib.sha256(f'{action}|{now:%Y%m%d%H}'.encode()).hexdigest()[:40]}"
    cluster.create(
        PLURAL, "Intervention", {"name": uid, "labels": {ORIGIN: "auto"}}, _spec(action, "all", "", reason, uid)
    )


def annotated(cluster: Cluster, item: Document) -> None:
    """Take an annotation korrigo.io/action=retry off a StuckCopy and make an Intervention of it, one for each time.

    The Intervention comes first, named by how many there were; the annotation goes with the count, in one change that
    fails when anybody else changed the object: killed in between, the next sweep makes the same one, that is none.
    """
    given = objects.annotations_of(item)
    word = given.get(ACTION)
    if word is None:
        return
    spec, metadata = item["spec"], item["metadata"]
    action = _VERBS.get(word, {}).get(spec["stage"])
    count = int(given.get(ASKED, "0")) if given.get(ASKED, "0").isdigit() else 0
    if action is None:
        cluster.tell(item, "UnknownAction", f"{ACTION}={word} means nothing here", is_warning=True)
    else:
        kind, subject = ("copy", spec["copyId"]) if spec.get("copyId") else ("scan", spec["scanId"])
        reason = f"asked for by {ACTION}={word}"
        labels = {ORIGIN: "annotation", STUCK: metadata["name"]}
        passed = {key: given[key] for key in (APPROVED_BY,) if key in given}
        name = f"{metadata['name']}-{metadata['uid'][:8]}-{count}"
        cluster.create(
            PLURAL, "Intervention", {"name": name, "labels": labels, "annotations": passed},
            _spec(action, kind, subject, reason, requested_by=given.get(REQUESTED_BY, "")),
        )  # fmt: skip
    change = {ACTION: None, REQUESTED_BY: None, APPROVED_BY: None, ASKED: str(count + 1)}
    cluster.patch(
        stuck_copies.PLURAL,
        metadata["name"],
        {"metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": change}},
    )


def _spec(action: str, kind: str, subject: str, reason: str, key: str = "", requested_by: str = "") -> Document:
    return InterventionSpec.model_validate(
        {
            "action": action, "target": {"kind": kind, "id": subject or None}, "reason": reason[:500],
            "requestedBy": requested_by or None, "idempotencyKey": key or None,
        }
    ).document()  # fmt: skip


class Doer:
    """Has what is asked for done."""

    def __init__(self, cluster: Cluster, rooms: Rooms, now: datetime, is_leading: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._rooms = rooms
        self._now = now
        self._is_leading = is_leading
        self._ends_at = time.monotonic() + _SWEEP_SECONDS

    def reconcile(self, items: list[Document], stuck: dict[str, Document], *, is_paused: bool) -> int:
        """Do what is not done yet, oldest first, and drop what is old; returns how many could not be written."""
        ordered = sorted(items, key=lambda item: item["metadata"]["creationTimestamp"])
        surplus = ordered[: max(0, len(ordered) - lifecycle.MOST_INTERVENTIONS)]
        return objects.each(
            ordered,
            "Intervention",
            lambda item: self._one(item, stuck, is_paused=is_paused, is_surplus=item in surplus),
        )

    def _one(self, item: Document, stuck: dict[str, Document], *, is_paused: bool, is_surplus: bool) -> None:
        status = item.get("status") or {}
        if status.get("phase") in _DONE:
            ended = datetime.fromisoformat(status.get("completionTime") or item["metadata"]["creationTimestamp"])
            if is_surplus or self._now - ended > lifecycle.KEEP_INTERVENTIONS:
                self._cluster.delete(PLURAL, item["metadata"]["name"], item["metadata"]["uid"])
            return
        if is_paused or objects.is_paused(item) or "deletionTimestamp" in item["metadata"]:
            return
        if time.monotonic() < self._ends_at and self._is_leading():
            self._do(item, status, stuck)

    def _do(self, item: Document, status: Document, stuck: dict[str, Document]) -> None:
        spec = InterventionSpec.model_validate(item["spec"])
        if spec.target.kind == "selected" and "targets" not in status:
            status = self._freeze(item, spec, status, stuck)
        outcomes: list[InterveneResponse] = []
        for asked in self._asked(item, spec, status):
            # Two hundred slow acts outlast the lease, and the patience of the liveness probe, which this feeds. Whoever
            # lost the lease leaves the rest to its holder: what was done is not done again, for its uid.
            if not self._is_leading():
                return
            try:
                outcomes.append(self._rooms.act(asked))
            except KorrigoError as error:
                self._refused(item, status, error)
                return
        self._ended(item, spec, status, outcomes)

    def _freeze(self, item: Document, spec: InterventionSpec, status: Document, stuck: dict[str, Document]) -> Document:
        """Note what a selector selects now, before anything is done: a second try is about the same."""
        wanted = spec.target.selector.document() if spec.target.selector else {}
        chosen = [
            f"copy/{one['spec']['copyId']}" if one["spec"].get("copyId") else f"scan/{one['spec']['scanId']}"
            for one in stuck.values()
            if all(one["spec"].get(key) == value for key, value in wanted.items())
            and (one.get("status") or {}).get("phase") != "Resolved"
        ]
        frozen = {**status, "phase": "Running", "targets": sorted(set(chosen))}
        self._cluster.patch(PLURAL, item["metadata"]["name"], {"status": frozen}, part="status")
        return frozen

    def _asked(self, item: Document, spec: InterventionSpec, status: Document) -> list[Asked]:
        uid = spec.idempotency_key or item["metadata"]["uid"]
        approver = objects.annotations_of(item).get(APPROVED_BY, "")
        targets = [(uid, spec.target.kind, spec.target.id or "")]
        if spec.target.kind == "selected":
            targets = [
                (hashlib.sha256(f"{uid}|{target}".encode()).hexdigest()[:40], *target.split("/", 1))
                for target in status["targets"]
            ]
        actor = spec.requested_by or OPERATOR
        return [
            Asked(one, spec.action, kind, id_, spec.reason, spec.dry_run, actor, approver) for one, kind, id_ in targets
        ]

    def _refused(self, item: Document, status: Document, error: KorrigoError) -> None:
        approver = objects.annotations_of(item).get(APPROVED_BY)
        may_be_approved = isinstance(error, Forbidden) and (error.reason == "APPROVAL_REQUIRED" or approver is not None)
        created = datetime.fromisoformat(item["metadata"]["creationTimestamp"])
        is_late = self._now - created > lifecycle.KEEP_INTERVENTIONS
        phase = "Failed"
        if may_be_approved and not is_late:
            phase = "AwaitingApproval"
        elif error.is_retryable and not is_late:
            phase = "Running"
        message = f"{error.message} ({error.reason})"
        self._write(
            item, status, phase, message,
            needsApproval=may_be_approved, approved=(False if may_be_approved else None), reason=_camel(error.reason),
        )  # fmt: skip

    def _ended(
        self, item: Document, spec: InterventionSpec, status: Document, outcomes: list[InterveneResponse]
    ) -> None:
        failed = [outcome for outcome in outcomes if outcome.state == "FAILED"]
        affected, refused = sum(one.affected for one in outcomes), sum(one.refused for one in outcomes)
        items = [
            {"subject": f"{acted.subject_type}/{acted.subject_id}", "isDone": acted.is_done, "note": acted.note}
            for outcome in outcomes
            for acted in outcome.items
        ]
        verb = "would be acted on" if spec.dry_run else "acted on"
        message = f"{affected} {verb}, {refused} refused" + (f": {items[0]['note']}" if len(items) == 1 else "")
        needs = any(outcome.needs_approval for outcome in outcomes)
        phase = "Failed" if failed else "Succeeded"
        if not spec.dry_run:
            metrics.acts.labels(spec.action, phase.lower()).inc()
        self._write(
            item, status, phase, message, affected=affected, refused=refused, items=items[:20], needsApproval=needs,
            problems=sum(one.problems for one in outcomes), reason="DryRun" if spec.dry_run else phase,
            eventIds=[event for outcome in outcomes for event in outcome.event_ids][:200],
            approvedBy=objects.annotations_of(item).get(APPROVED_BY),
        )  # fmt: skip

    def _write(self, item: Document, old: Document, phase: str, message: str, **more: object) -> None:
        now, is_done = self._now, phase in _DONE
        reason, approved = str(more.pop("reason")), more.pop("approved", None)
        conditions = [objects.condition(old, "Complete", is_done, reason, message, now)]
        if approved is not None or more.get("approvedBy"):
            words = ("Approved", "a second admin approved it") if approved is None else ("ApprovalRequired", message)
            conditions.append(objects.condition(old, "Approved", approved is None, *words, now))
        if objects.has_changed(old, "Complete", reason):
            self._cluster.tell(item, reason, message, is_warning=phase in ("Failed", "AwaitingApproval"))
        status = InterventionStatus.model_validate(
            {
                "phase": phase, "message": message[:500], "startTime": old.get("startTime") or now,
                "completionTime": now if is_done else None, "targets": old.get("targets", []),
                "conditions": conditions, **more,
            }
        )  # fmt: skip
        objects.write(self._cluster, PLURAL, item, status=status)


def _camel(reason: str) -> str:
    return "".join(word.capitalize() for word in reason.split("_")) or "Failed"
