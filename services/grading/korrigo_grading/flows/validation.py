"""A person finds copies complete: STAGING becomes READY (domain.md 1.2). Started by `rest.validation`."""

from __future__ import annotations

from dataclasses import dataclass, field

from korrigo_grading.domain import statuses
from korrigo_grading.events import copies as events
from korrigo_grading.models import assemblies, copies, desk
from korrigo_grading.models.copies import Copy
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import Invalid, KorrigoError, NotFound, StateConflict
from korrigo_kit.room import Runtime

VALIDATORS = ("admin", "scan_operator", "lead_marker")


@dataclass
class Report:
    """What became of an exam's staged copies."""

    validated: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def validate(rt: Runtime, caller: Principal, copy_id: str, *, override_anomalies: bool, reason: str | None) -> Copy:
    """Make a copy READY and return it as it is now.

    Raises Forbidden, NotFound, StateConflict (INVALID_STATUS, NO_PAGES, UNRESOLVED_ANOMALIES) and Invalid
    (REASON_REQUIRED) when anomalies are overridden without a reason.
    """
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        copy = desk.held_by_admin(tx, caller, copy_id, *VALIDATORS)
        _validate(tx, caller, copy, override_anomalies=override_anomalies, reason=reason)
        after = copies.read(tx, copy_id)
        assert after is not None
        return after


def validate_all(rt: Runtime, caller: Principal, exam_id: str) -> Report:
    """Make every staged copy of an exam READY that nothing speaks against; each in a transaction of its own."""
    caller.require(*VALIDATORS)
    with rt.db.transaction() as tx:
        if copies.correctors(tx, exam_id) is None:
            raise NotFound("EXAM_NOT_FOUND", "there is no such exam")
        waiting = copies.staged(tx, exam_id)
    report = Report()
    for copy_id in waiting:
        try:
            validate(rt, caller, copy_id, override_anomalies=False, reason=None)
        except KorrigoError as error:
            report.skipped.append((copy_id, error.reason))
        else:
            report.validated.append(copy_id)
    return report


def _validate(tx: Tx, caller: Principal, copy: Copy, *, override_anomalies: bool, reason: str | None) -> None:
    status = statuses.after("validate", copy.status)
    pages = len(assemblies.pages(tx, copy.id))
    if pages == 0:
        raise StateConflict("NO_PAGES", "the copy has no pages yet; it cannot be validated")
    open_codes = copies.blocking_anomalies(tx, copy.id)
    if open_codes and not override_anomalies:
        raise StateConflict(
            "UNRESOLVED_ANOMALIES", "something about this copy is not settled yet", anomalies=open_codes
        )
    if open_codes and not (reason or "").strip():
        raise Invalid("REASON_REQUIRED", "say why the anomalies do not matter", field="reason")
    copies.validated(tx, copy, status)
    events.status_changed(
        tx,
        copy,
        status,
        action="VALIDATE",
        actor_id=caller.user_id,
        metadata={
            "pages": pages,
            "anomalies_overridden": open_codes,
            "after": {"ingest": assemblies.ingest_seen(tx, copy.id)},
        },
        texts={"reason": reason} if reason else None,
    )
