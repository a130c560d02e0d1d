"""From a marked copy to its final PDF, and back when an admin reopens it. Started by `rest.finalisation`; the ends
of a request come from render's events by the consumer.

Three short transactions, rendering outside all of them (house.md, How it runs):

    request     LOCKED (or GRADING_FAILED, by an admin) -> GRADING_IN_PROGRESS; the lock ends without UNLOCK; the
                manifest is a blob before the commit that names it; render is asked by an event
    rendered    -> GRADED, the one FINALIZE success of the revision
    failed      FINALIZE success=false for every attempt; GRADING_FAILED only after the last

The manifest is built twice: once to be stored, outside any transaction, and once under the copy's lock. Only when
both are equal byte for byte is the request made, so a write that slipped in between is in the final PDF or refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from korrigo_grading.domain import access, finalisation, scheme, statuses
from korrigo_grading.domain import locks as lock_rules
from korrigo_grading.events import copies as events
from korrigo_grading.metrics import grading_finalize_duration_seconds, retry_attempt
from korrigo_grading.models import copies, desk, finalisations, locks, manifests
from korrigo_grading.models.copies import Copy
from korrigo_grading.models.finalisations import Finalisation
from korrigo_grading.models.manifests import Draft
from korrigo_kit.auth import Principal
from korrigo_kit.clock import rfc3339
from korrigo_kit.db import Tx
from korrigo_kit.errors import Invalid, NotFound, StateConflict
from korrigo_kit.ids import new_id
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime, add_blob_ref
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.render.v1 import events_pb2

log = logging.getLogger("grading")

# Who may read a final PDF before the results are released: its header is not masked (decisions.md, The source of a
# copy and the final PDF). Release opens it to lead markers and to the student.
READERS = ("admin",)
# How often a request is rebuilt because somebody wrote while its manifest was being stored.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Requested:
    """A request that was made."""

    copy_id: str
    status: str
    finalisation_id: str


# Keeps the answer in the transaction of the request itself (Idempotency-Key).
Remember = Callable[[Tx, Requested], None]


class _Moved(Exception):
    """What the manifest was built from is not what is there any more."""


def request(rt: Runtime, caller: Principal, copy_id: str, token: str | None, remember: Remember) -> Requested:
    """Ask for the final PDF of a copy that the caller holds.

    Raises StateConflict (FINALIZE_IN_PROGRESS, COPY_ALREADY_GRADED, SCORE_INCOMPLETE, ANNOTATION_ORPHANED) and what
    the lock says.
    """
    caller.require(*access.MARKERS)
    return _request(rt, caller, copy_id, lock_rules.token_hash(token), remember)


def retry(rt: Runtime, caller: Principal, copy_id: str, remember: Remember) -> Requested:
    """Ask again for the final PDF of a copy that failed; admins only. Raises StateConflict (INVALID_STATUS ...)."""
    caller.require("admin")
    return _request(rt, caller, copy_id, None, remember)


def _request(rt: Runtime, caller: Principal, copy_id: str, token_hash: str | None, remember: Remember) -> Requested:
    for _ in range(_TRIES):
        with rt.db.transaction() as tx:
            copy = copies.read(tx, copy_id)
            marker_id = _check(tx, caller, copy, token_hash)
            assert copy is not None
            finalized_at = rfc3339(copy.now)
            draft = _complete(tx, rt, copy, marker_id, finalized_at)
        manifest = rt.blobs.put_bytes(draft.data)
        try:
            return _commit(rt, caller, copy_id, token_hash, marker_id, finalized_at, manifest.sha256, remember)
        except _Moved:
            continue
    raise desk.contended(copy_id)


def _draft(tx: Tx, rt: Runtime, copy: Copy, marker_id: str, finalized_at: str) -> Draft:
    return manifests.draft(
        tx, copy, marker_id=marker_id, finalized_at=finalized_at, public_url=rt.settings.http.public_url
    )


def _complete(tx: Tx, rt: Runtime, copy: Copy, marker_id: str, finalized_at: str) -> Draft:
    """Build the manifest of a request; a mark that does not add up is told as the guide looks for it (1.18)."""
    try:
        return _draft(tx, rt, copy, marker_id, finalized_at)
    except StateConflict as error:
        if error.reason == finalisation.SCORE_INCOMPLETE:
            log.error("Cannot calculate total score", extra={"copy_id": copy.id, "reason": error.reason})
        raise


def _check(tx: Tx, caller: Principal, found: Copy | None, token_hash: str | None) -> str:
    """Raise what speaks against the request; return whose marking it is."""
    copy = desk.marked(caller, found)
    if token_hash is None:
        statuses.after("retry", copy.status)
        last = finalisations.newest(tx, copy.id, copy.revision)
        return last.marker_id if last else caller.user_id
    if copy.status in (statuses.GRADED, statuses.GRADING_IN_PROGRESS):
        desk.already_graded(copy)
        _already_finalized(copy)
        statuses.after("finalize", copy.status)
    desk.check_lock(caller, copy, token_hash)
    statuses.after("finalize", copy.status)
    return caller.user_id


def _commit(
    rt: Runtime,
    caller: Principal,
    copy_id: str,
    token_hash: str | None,
    marker_id: str,
    finalized_at: str,
    manifest_sha256: str,
    remember: Remember,
) -> Requested:
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        copy = copies.hold(tx, copy_id)
        _check(tx, caller, copy, token_hash)
        assert copy is not None
        # From here on no annotation can be written: writes need the row that this takes away.
        if token_hash is not None and not locks.release(
            tx, copy_id=copy_id, user_id=caller.user_id, token_hash=token_hash
        ):
            raise _Moved
        draft = _complete(tx, rt, copy, marker_id, finalized_at)
        if hashlib.sha256(draft.data).hexdigest() != manifest_sha256:
            raise _Moved
        last = finalisations.newest(tx, copy_id, copy.revision)
        number = last.request + 1 if last else 1
        done = Requested(copy_id, statuses.GRADING_IN_PROGRESS, new_id())
        finalisations.add(
            tx,
            {
                "id": done.finalisation_id,
                "copy_id": copy_id,
                "revision": copy.revision,
                "request": number,
                "manifest_sha256": manifest_sha256,
                "score": draft.sheet.total,
                "max_score": draft.sheet.maximum,
                "marker_id": marker_id,
                "requested_by": caller.user_id,
            },
        )
        add_blob_ref(tx, manifest_sha256, "manifest", done.finalisation_id)
        copies.finalising(tx, copy, done.status)
        events.status_changed(tx, copy, done.status, actor_id=caller.user_id)
        events.render_requested(tx, copy, number, manifest_sha256, caller.user_id)
        remember(tx, done)
    fields = {"copy_id": copy_id, "job_id": done.finalisation_id}
    log.info("Starting async finalization for copy %s by user %s", copy_id, caller.user_id, extra=fields)
    if number > 1:
        log.info("Copy %s previously failed, retrying finalization (attempt %s)", copy_id, number, extra=fields)
    return done


def manifest_of(rt: Runtime, copy_id: str) -> bytes:
    """Return the manifest of a copy's newest request, or of the copy as it is now when nothing was asked yet.

    Changes nothing; `korrigo render` looks with it at what render would make. Raises NotFound (COPY_NOT_FOUND) and
    StateConflict (SCORE_INCOMPLETE, ANNOTATION_ORPHANED).
    """
    with rt.db.transaction() as tx:
        copy = copies.read(tx, copy_id)
        if copy is None:
            raise desk.not_found()
        last = finalisations.newest(tx, copy_id, copy.revision)
        if last is None:
            marker_id = copy.locked_by or copy.assigned_corrector_id or SYSTEM_ACTOR
            return _draft(tx, rt, copy, marker_id, rfc3339(copy.now)).data
    return rt.blobs.read(last.manifest_sha256)


def on_rendered(tx: Tx, event: event_pb2.Event) -> None:
    """A final PDF exists and was verified: the copy is GRADED, once per revision."""
    told = events_pb2.Rendered.FromString(event.payload)
    found = _open_request(tx, told.copy_id, told.revision, told.request)
    if found is None:
        return
    copy, asked = found
    if told.manifest_sha256 != asked.manifest_sha256:
        log.error("a final PDF was made from another manifest", extra={"copy_id": copy.id, "job_id": asked.id})
        return
    status = statuses.after("succeed", copy.status)
    finalisations.succeed(
        tx,
        asked.id,
        {
            "attempts": told.attempt,
            "final_sha256": told.final_sha256,
            "final_size": told.final_size,
            "pages": told.pages,
            "duration_ms": told.duration_ms,
        },
    )
    add_blob_ref(tx, told.final_sha256, "final_pdf", f"{copy.id}/{copy.revision}")
    copies.graded(tx, copy, status, score=asked.score)
    score = scheme.number(asked.score)
    events.status_changed(
        tx,
        copy,
        status,
        action="FINALIZE",
        actor_id=asked.requested_by,
        metadata={
            "final_score": score,
            "max_score": scheme.number(asked.max_score),
            "retries": copy.grading_retries,
            "success": True,
            "pdf_sha256": told.final_sha256,
            "pages": told.pages,
            "revision": copy.revision,
            "duration_ms": told.duration_ms,
        },
    )
    _measure(tx, "success", told.attempt, asked)
    fields = {"copy_id": copy.id, "job_id": asked.id}
    tx.after_commit(lambda: log.info("Successfully finalized copy %s with score %s", copy.id, score, extra=fields))


def on_failed(tx: Tx, event: event_pb2.Event, max_attempts: int) -> None:
    """An attempt failed: noted and told; GRADING_FAILED only when no attempt follows by itself."""
    told = events_pb2.RenderFailed.FromString(event.payload)
    found = _open_request(tx, told.copy_id, told.revision, told.request)
    if found is None:
        return
    copy, asked = found
    status = statuses.after("fail", copy.status) if told.is_final else copy.status
    retries = max(told.attempt, copy.grading_retries)
    finalisations.fail(
        tx,
        asked.id,
        attempts=told.attempt,
        reason=told.reason,
        duration_ms=told.duration_ms,
        is_final=told.is_final,
    )
    copies.failed_attempt(tx, copy, status, retries=retries, message=finalisation.error_message(told.reason))
    metadata = {
        "final_score": None,
        "max_score": scheme.number(asked.max_score),
        "retries": retries,
        "success": False,
        "error": told.reason,
        "revision": copy.revision,
        "attempt": told.attempt,
        "duration_ms": told.duration_ms,
    }
    if told.is_final:
        events.status_changed(tx, copy, status, action="FINALIZE", actor_id=asked.requested_by, metadata=metadata)
    else:
        events.recorded(tx, copy.id, "FINALIZE", asked.requested_by, metadata)
    _measure(tx, "failed", told.attempt, asked)
    tx.after_commit(lambda: _log_failure(copy.id, asked.id, told, retries, max_attempts))


def _log_failure(
    copy_id: str, finalisation_id: str, told: events_pb2.RenderFailed, retries: int, max_attempts: int
) -> None:
    fields = {"copy_id": copy_id, "job_id": finalisation_id, "reason": told.reason}
    message = finalisation.error_message(told.reason)
    log.error("PDF generation failed for copy %s (attempt %s): %s", copy_id, told.attempt, told.reason, extra=fields)
    log.error("%s", finalisation.playbook_line(told.reason), extra=fields)
    log.error(
        "Async finalization failed for copy %s (attempt %s/%s): %s",
        copy_id,
        told.attempt,
        max_attempts,
        message,
        extra=fields,
    )
    if told.is_final:
        log.critical("Copy %s failed %s times - manual intervention required", copy_id, retries, extra=fields)


def _open_request(tx: Tx, copy_id: str, revision: int, request: int) -> tuple[Copy, Finalisation] | None:
    """Return the copy and its request when that request is the one that is awaited; what comes late is left."""
    copy = copies.hold(tx, copy_id, even_deleted=True)
    if copy is None:
        log.error("render told of a copy that is not here", extra={"copy_id": copy_id})
        return None
    asked = finalisations.newest(tx, copy_id, revision)
    is_awaited = (
        asked is not None
        and asked.request == request
        and asked.state == "REQUESTED"
        and copy.revision == revision
        and copy.status == statuses.GRADING_IN_PROGRESS
    )
    if not is_awaited or asked is None:
        log.warning("render answered a request that is over", extra={"copy_id": copy_id})
        if copy.status == statuses.GRADED:
            _already_finalized(copy)
        return None
    return copy, asked


def _already_finalized(copy: Copy) -> None:
    """Tell, in the playbook's words, of what came second: a request, or render's answer to one that is over."""
    log.warning("Copy already finalized", extra={"copy_id": copy.id, "status": copy.status})


def _measure(tx: Tx, status: str, attempt: int, asked: Finalisation) -> None:
    series = grading_finalize_duration_seconds.labels(status, retry_attempt(attempt))
    tx.after_commit(lambda: series.observe(asked.age_seconds))


def reopen(rt: Runtime, caller: Principal, copy_id: str, reason: str) -> Copy:
    """Take a graded copy back to marking under the next revision; admins only, with a reason.

    The final PDF of the old revision stays readable. Raises StateConflict (INVALID_STATUS) and Invalid
    (REASON_REQUIRED).
    """
    caller.require("admin")
    if not reason.strip():
        raise Invalid("REASON_REQUIRED", "say why the copy is reopened", field="reason")
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        copy = desk.held_by_admin(tx, caller, copy_id, "admin")
        status = statuses.after("reopen", copy.status)
        copies.reopened(tx, copy, status)
        events.status_changed(
            tx,
            copy,
            status,
            action="REOPEN",
            actor_id=caller.user_id,
            metadata={"revision_from": copy.revision, "revision_to": copy.revision + 1},
            texts={"reason": reason},
            revision=copy.revision + 1,
        )
        after = copies.read(tx, copy_id)
        assert after is not None
        return after


def final_pdf(rt: Runtime, caller: Principal, copy_id: str, revision: int | None) -> Finalisation:
    """Return the success whose PDF is asked for: of a revision, or of the last graded one.

    Raises Forbidden and NotFound (COPY_NOT_FOUND, FINAL_PDF_NOT_FOUND).
    """
    caller.require(*READERS)
    with rt.db.transaction() as tx:
        if copies.read(tx, copy_id) is None:
            raise desk.not_found()
        found = finalisations.succeeded(tx, copy_id, revision)
    if found is None:
        raise NotFound("FINAL_PDF_NOT_FOUND", "the copy has no final PDF yet")
    return found
