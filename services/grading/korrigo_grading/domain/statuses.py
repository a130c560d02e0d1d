"""The life of a copy: six statuses and the only ways between them (domain.md 1.2, decisions.md).

Every flow that changes a status asks here first.

    from                 to                   by          event
    -------------------  -------------------  ----------  ------------------------------------------------
    (none)               STAGING              stage       ingest's IMPORT
    STAGING              READY                validate    VALIDATE
    READY                LOCKED               lock        LOCK
    GRADING_FAILED       LOCKED               lock        LOCK (to repair what made it fail)
    LOCKED               READY                unlock      UNLOCK released|expired|forced|reconciled
    LOCKED               LOCKED               take_over   UNLOCK takeover|expired, then LOCK
    LOCKED               GRADING_IN_PROGRESS  finalize    (request; ends the lock without UNLOCK)
    GRADING_IN_PROGRESS  GRADED               succeed     FINALIZE success
    GRADING_IN_PROGRESS  GRADING_FAILED       fail        FINALIZE success=false, after the last attempt
    GRADING_FAILED       GRADING_IN_PROGRESS  retry       (request + 1)
    GRADED               READY                reopen      REOPEN, revision + 1

Nothing leads back to STAGING.
"""

from __future__ import annotations

from korrigo_kit.errors import StateConflict

STAGING = "STAGING"
READY = "READY"
LOCKED = "LOCKED"
GRADING_IN_PROGRESS = "GRADING_IN_PROGRESS"
GRADING_FAILED = "GRADING_FAILED"
GRADED = "GRADED"
STATUSES = (STAGING, READY, LOCKED, GRADING_IN_PROGRESS, GRADING_FAILED, GRADED)

TRANSITIONS: dict[str, dict[str, str]] = {
    "validate": {STAGING: READY},
    "lock": {READY: LOCKED, GRADING_FAILED: LOCKED},
    "unlock": {LOCKED: READY},
    "take_over": {LOCKED: LOCKED},
    "finalize": {LOCKED: GRADING_IN_PROGRESS},
    "succeed": {GRADING_IN_PROGRESS: GRADED},
    "fail": {GRADING_IN_PROGRESS: GRADING_FAILED},
    "retry": {GRADING_FAILED: GRADING_IN_PROGRESS},
    "reopen": {GRADED: READY},
}


def can(verb: str, status: str) -> bool:
    """Tell whether a copy of this status may take this way."""
    return status in TRANSITIONS[verb]


def after(verb: str, status: str) -> str:
    """Return the status that a verb leads to; raises StateConflict.

    COPY_ALREADY_GRADED and FINALIZE_IN_PROGRESS name what a marker meets when somebody was faster; everything else
    is INVALID_STATUS.
    """
    reached = TRANSITIONS[verb].get(status)
    if reached is not None:
        return reached
    if verb in ("lock", "finalize") and status == GRADED:
        raise StateConflict("COPY_ALREADY_GRADED", "the copy is graded already", copy_status=status)
    if verb in ("lock", "finalize") and status == GRADING_IN_PROGRESS:
        raise StateConflict("FINALIZE_IN_PROGRESS", "the copy is being finalised", copy_status=status)
    raise StateConflict("INVALID_STATUS", f"a copy that is {status} cannot do this", copy_status=status)
