"""Acts of healing, done once: planned, claimed by their uid, done item by item, told. Served by `kit.operations`.

    plan ──dry run──> told, nothing kept
      │
    claim (uid, plan) ──lost──> the result of whoever has it
      │
    act on each item, by the room's own flow and its events
      │
    finish: result and audit event in one transaction

The plan is kept with the claim and says in what state each item was, so whoever goes on after a crash acts only on what
is still as it was: a lock that ended is not ended a second time under its next holder. An item that is no longer as
planned counts as done. A failure that a later call may heal gives the claim back.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

from korrigo_kit import context, outbox
from korrigo_kit.db import Tx, UniqueViolation
from korrigo_kit.errors import Forbidden, Invalid, KorrigoError, NotFound, StateConflict, Unavailable
from korrigo_kit.outbox import OPERATOR_ACTOR, SYSTEM_ACTOR
from korrigo_kit.telemetry.metrics import interventions_total, operator_actions_total
from korrigo_protos.grading.v1 import grading_pb2, grading_pb2_grpc
from korrigo_protos.grading.v1.events_pb2 import Recorded

if TYPE_CHECKING:
    from korrigo_kit.room import Runtime

log = logging.getLogger("korrigo.interventions")

# Which room acts.
ACTIONS = {
    "RetryImport": "ingest",
    "RetryFinalize": "grading",
    "ForceUnlock": "grading",
    "ReleaseExpiredLocks": "grading",
    "RecreateAuditEvent": "audit",
    "CleanupTempFiles": "ingest",
    "VerifyAudit": "audit",
}
KINDS = ("copy", "exam", "scan", "all")
MAX_REASON = 500
# Longer than any act takes but the verification of a very large trail, which may be done twice.
_LEASE_SECONDS = 120
_WAIT_SECONDS = 20.0
_LOOK_SECONDS = 0.2
# Nobody who could answer for an act that needs two people.
OPERATOR = "operator"
_NOBODY = {"": SYSTEM_ACTOR, SYSTEM_ACTOR: SYSTEM_ACTOR, OPERATOR: OPERATOR_ACTOR, OPERATOR_ACTOR: OPERATOR_ACTOR}
_UID = re.compile(r"[A-Za-z0-9._-]{8,64}")


@dataclass(frozen=True, slots=True)
class Item:
    """Something to act on, and the mark of the state it was in when that was decided."""

    subject_type: str
    subject_id: str
    mark: str = ""
    what: str = ""


@dataclass(frozen=True, slots=True)
class Deed:
    """What came of one item; `problems` are what a verification found."""

    is_done: bool
    note: str
    problems: int = 0


def fingerprint(action: str, kind: str, subject_id: str) -> str:
    """Return what a uid stands for: the act and its target."""
    return hashlib.sha256("|".join((action, kind, subject_id)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for, once people are known by their accounts."""

    uid: str
    action: str
    kind: str
    id: str
    reason: str
    actor_id: str = SYSTEM_ACTOR
    approver_id: str | None = None

    @property
    def fingerprint(self) -> str:
        """What a uid stands for, people and reason apart."""
        return fingerprint(self.action, self.kind, self.id)

    @property
    def subject(self) -> tuple[str, str]:
        """The stream that the audit event belongs to."""
        return ("system", "system") if self.kind == "all" else (self.kind, self.id)


@dataclass(frozen=True, slots=True)
class Verb:
    """How a room does one action."""

    kinds: tuple[str, ...]
    # What would be acted on now; raises NotFound.
    plan: Callable[[Order], Sequence[Item]]
    # Do it to one item that is still as planned, and leave any other alone.
    act: Callable[[Order, Item], Deed]
    # Whether a second admin has to agree.
    is_guarded: Callable[[Order, Sequence[Item]], bool] = lambda _order, _items: False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came, people by id or name."""

    uid: str
    action: str
    kind: str
    id: str
    reason: str
    is_dry_run: bool = False
    actor: str = ""
    approver: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an intervention; deeds in the order of the plan."""

    state: str
    deeds: Sequence[tuple[Item, Deed]]
    event_ids: Sequence[str] = ()
    is_replayed: bool = False
    needs_approval: bool = False


def intervene(rt: Runtime, asked: Asked) -> Outcome:
    """Do an intervention, or tell what an earlier call of its uid did.

    Raises Invalid (UNKNOWN_ACTION, INVALID_UID, REASON_REQUIRED, INVALID_TARGET), Forbidden (NOT_AN_ADMIN,
    APPROVAL_REQUIRED), NotFound, StateConflict (UID_REUSED) and Unavailable (INTERVENTION_RUNNING, and what is away).
    """
    verb = rt.room.interventions(rt).get(asked.action)
    if verb is None:
        raise Invalid("UNKNOWN_ACTION", f"{rt.name} does no {asked.action[:40]}")
    _check(asked, verb)
    order = Order(asked.uid, asked.action, asked.kind, asked.id, asked.reason.strip(), *_people(rt, asked))
    if not asked.is_dry_run:
        known = _kept(rt, order)
        if known is not None and known["state"] != "RUNNING":
            return _replayed(known)
    items = list(verb.plan(order))
    needs_approval = verb.is_guarded(order, items)
    operator_actions_total.labels(order.action).inc()
    if asked.is_dry_run:
        interventions_total.labels("dry_run").inc()
        return Outcome("DRY_RUN", [(item, Deed(True, item.what)) for item in items], needs_approval=needs_approval)
    if needs_approval:
        _require_two(order)
    return _once(rt, verb, order, items)


def _check(asked: Asked, verb: Verb) -> None:
    if not _UID.fullmatch(asked.uid):
        raise Invalid("INVALID_UID", "a uid has 8 to 64 characters of A-Z a-z 0-9 . _ -")
    if not asked.reason.strip() or len(asked.reason) > MAX_REASON:
        raise Invalid("REASON_REQUIRED", f"say why, in at most {MAX_REASON} characters", field="reason")
    if asked.kind not in verb.kinds:
        raise Invalid("INVALID_TARGET", f"{asked.action} acts on {', '.join(verb.kinds)}")
    if asked.kind != "all":
        try:
            is_id = str(uuid.UUID(asked.id)) == asked.id
        except ValueError:
            is_id = False
        if not is_id:
            raise Invalid("INVALID_TARGET", f"a {asked.kind} is named by its id")
    elif asked.id:
        raise Invalid("INVALID_TARGET", "all has no id")


# ---------------------------------------------------------------------------------------------- people
def _people(rt: Runtime, asked: Asked) -> tuple[str, str | None]:
    actor_id = _NOBODY.get(asked.actor) or _admin(rt, asked.actor)
    return actor_id, _admin(rt, asked.approver) if asked.approver else None


def _admin(rt: Runtime, account: str) -> str:
    try:
        with rt.channels.asking("grading"):
            stub = rt.channels.stub("grading", grading_pb2_grpc.AccountServiceStub)
            found = stub.GetAccount(grading_pb2.GetAccountRequest(account=account))
    except NotFound:
        raise Forbidden("NOT_AN_ADMIN", "there is no such admin") from None
    if not found.is_active or "admin" not in found.roles:
        raise Forbidden("NOT_AN_ADMIN", "this account is no admin who can log in")
    return str(found.account_id)


def _require_two(order: Order) -> None:
    """Two people, each an admin: the system's accounts are nobody who could answer for it."""
    if order.actor_id in _NOBODY or order.approver_id is None:
        raise Forbidden("APPROVAL_REQUIRED", f"{order.action} needs one admin who does it and another who approved it")
    if order.actor_id == order.approver_id:
        raise Forbidden("APPROVAL_REQUIRED", "nobody approves his own act: another admin has to")


# ---------------------------------------------------------------------------------------------- once
def _once(rt: Runtime, verb: Verb, order: Order, items: Sequence[Item]) -> Outcome:
    """Claim the uid and act; whoever comes second waits for the first one's result."""
    ends_at = time.monotonic() + _WAIT_SECONDS
    while (plan := _claim(rt, order, items)) is None:
        known = _kept(rt, order)
        if known is not None and known["state"] != "RUNNING":
            return _replayed(known)
        if time.monotonic() > ends_at:
            raise Unavailable("INTERVENTION_RUNNING", "this intervention is being done; ask again")
        time.sleep(_LOOK_SECONDS)
    try:
        deeds = [(item, _deed(verb, order, item)) for item in plan]
        outcome = _finish(rt, order, deeds)
    except BaseException:
        interventions_total.labels("failed").inc()
        _give_back(rt, order)
        raise
    interventions_total.labels("success" if outcome.state == "SUCCEEDED" else "failed").inc()
    log.info("intervention %s %s: %s", order.action, order.uid, outcome.state)
    return outcome


def _deed(verb: Verb, order: Order, item: Item) -> Deed:
    """Act on one item; one that refuses must not stop the others, one that something is away for stops all."""
    try:
        return verb.act(order, item)
    except KorrigoError as error:
        if error.is_retryable:
            raise
        return Deed(False, f"{error.message} ({error.reason})")


def _kept(rt: Runtime, order: Order) -> dict[str, Any] | None:
    with rt.db.transaction() as tx:
        row = tx.one("SELECT fingerprint, state, plan, result FROM interventions WHERE uid = %s", (order.uid,))
    if row is not None and row["fingerprint"] != order.fingerprint:
        raise StateConflict("UID_REUSED", "this uid belongs to another intervention")
    return row


def _claim(rt: Runtime, order: Order, items: Sequence[Item]) -> list[Item] | None:
    """Take the uid, or take it over from whoever died with it; the plan that counts, None when another is at it."""
    values = {
        "uid": order.uid,
        "action": order.action,
        "fingerprint": order.fingerprint,
        "actor": order.actor_id,
        "approver": order.approver_id,
        "plan": orjson.dumps([asdict(item) for item in items]).decode(),
        "lease": _LEASE_SECONDS,
        "request": context.request_id(),
    }
    try:
        with rt.db.transaction(actor=order.actor_id) as tx:
            tx.run(
                "INSERT INTO interventions (uid, action, fingerprint, actor_id, approver_id, plan, lease_until,"
                " request_id) VALUES (%(uid)s, %(action)s, %(fingerprint)s, %(actor)s, %(approver)s, %(plan)s,"
                " clock_timestamp() + make_interval(secs => %(lease)s), %(request)s)",
                values,
            )
        return list(items)
    except UniqueViolation:
        pass
    with rt.db.transaction(actor=order.actor_id) as tx:
        row = tx.one(
            "UPDATE interventions SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)"
            " WHERE uid = %(uid)s AND state = 'RUNNING' AND lease_until < clock_timestamp() RETURNING plan",
            values,
        )
    return [Item(**item) for item in row["plan"]] if row else None


def _give_back(rt: Runtime, order: Order) -> None:
    """Let the next call go on at once, by the same plan."""
    try:
        with rt.db.transaction() as tx:
            tx.run(
                "UPDATE interventions SET lease_until = clock_timestamp() - interval '1 second'"
                " WHERE uid = %s AND state = 'RUNNING'",
                (order.uid,),
            )
    except KorrigoError:
        log.warning("intervention %s is kept until its lease is over", order.uid)


def _finish(rt: Runtime, order: Order, deeds: Sequence[tuple[Item, Deed]]) -> Outcome:
    state = "SUCCEEDED" if all(deed.is_done for _, deed in deeds) else "FAILED"
    refused = sum(not deed.is_done for _, deed in deeds)
    with rt.db.transaction(actor=order.actor_id) as tx:
        emitted = outbox.emit(
            tx,
            type="intervened",
            subject=order.subject,
            payload=Recorded(),
            actor_id=order.actor_id,
            action="INTERVENTION",
            metadata={
                "uid": order.uid,
                "intervention": order.action,
                "result": state,
                "affected": len(deeds) - refused,
                "refused": refused,
                **({"approver_id": order.approver_id} if order.approver_id else {}),
            },
            texts={"reason": order.reason},
        )
        if rt.room.hears_itself is not None:
            rt.room.hears_itself(tx, outbox.read(tx, emitted.id))
        result = {"deeds": [[asdict(item), asdict(deed)] for item, deed in deeds], "event_ids": [emitted.id]}
        _settle(tx, order, state, result)
    return Outcome(state, deeds, (emitted.id,))


def _settle(tx: Tx, order: Order, state: str, result: dict[str, Any]) -> None:
    touched = tx.run(
        "UPDATE interventions SET state = %s, result = %s, finished_at = clock_timestamp()"
        " WHERE uid = %s AND state = 'RUNNING'",
        (state, orjson.dumps(result).decode(), order.uid),
    )
    if touched != 1:  # another took it over while we acted, and told first
        raise Unavailable("INTERVENTION_RUNNING", "another process went on with this intervention; ask again")


def _replayed(row: dict[str, Any]) -> Outcome:
    deeds = [(Item(**item), Deed(**deed)) for item, deed in row["result"]["deeds"]]
    return Outcome(row["state"], deeds, tuple(row["result"]["event_ids"]), is_replayed=True)
