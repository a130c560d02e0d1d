"""Annotations of a copy: made, changed, deleted under a lease. Started by `rest.annotations`.

A write never revives a lease: LOCK_EXPIRED, the client locks again and replays; the same client-made id makes the
replay the same annotation. Events carry what changed, never what was written (domain.md 1.3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from korrigo_grading.domain import access, scheme
from korrigo_grading.domain import annotations as rules
from korrigo_grading.domain.locks import token_hash
from korrigo_grading.events import copies as events
from korrigo_grading.models import annotations as rows
from korrigo_grading.models import assemblies, desk
from korrigo_grading.models.annotations import Annotation
from korrigo_grading.models.copies import Copy
from korrigo_grading.models.texts import drawable
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import AlreadyExists, Invalid, KorrigoError, NotFound, Stale
from korrigo_kit.ids import new_id
from korrigo_kit.room import Runtime

log = logging.getLogger("grading")

# Shown the annotation as it is; raises Stale when the caller has not seen that version.
Approve = Callable[[Annotation], None]

_PLACE = ("x", "y", "w", "h")


def listed(
    rt: Runtime, caller: Principal, copy_id: str, after: tuple[str, str] | None, limit: int
) -> Sequence[Annotation]:
    """List the annotations of a copy that the caller may see."""
    with rt.db.transaction() as tx:
        desk.visible(tx, caller, copy_id)
        return rows.page(tx, copy_id, after=after, limit=limit)


def create(
    rt: Runtime, caller: Principal, copy_id: str, token: str | None, given: Mapping[str, Any]
) -> tuple[Annotation, bool]:
    """Make an annotation; with an id that is there already and the same content, answer the one that is there.

    Returns it and whether it is new. Raises Invalid (INVALID_COORDINATES, ANNOTATION_OUT_OF_PAGE, INVALID_PAGE,
    UNKNOWN_QUESTION, UNSUPPORTED_CHARACTER ...), AlreadyExists (ANNOTATION_EXISTS, ANNOTATION_DELETED), and what the
    lock says.
    """
    caller.require(*access.MARKERS)
    if given.get("page_id") is None and given.get("page_index") is None:
        raise Invalid("INVALID_PAGE", "page_index or page_id is needed", field="page_index")
    values = {
        **_content(given),
        "id": given.get("id") or new_id(),
        "page_id": given.get("page_id"),
        "page_index": given.get("page_index"),
        **_proof(caller, copy_id, token),
        "marks_any": caller.has(*access.MARKS_ANY),
    }
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        made = rows.create(tx, values)
        if made is None:
            return _same(tx, caller, copy_id, values), False
        events.recorded(
            tx,
            copy_id,
            "CREATE_ANN",
            caller.user_id,
            {
                "annotation_id": made.id,
                "page": made.page_index,
                "type": made.type,
                "score_delta": _points(made.score_delta),
                "version": made.version,
            },
        )
        return made, True


def change(
    rt: Runtime,
    caller: Principal,
    copy_id: str,
    annotation_id: str,
    token: str | None,
    approve: Approve,
    given: Mapping[str, Any],
) -> Annotation:
    """Change what is given of an annotation; a change that changes nothing writes nothing.

    Raises as `create`, NotFound (ANNOTATION_NOT_FOUND), Stale (428 IF_MATCH_REQUIRED, 412 VERSION_MISMATCH with the
    current document).
    """
    caller.require(*access.MARKERS)
    proof = _proof(caller, copy_id, token)
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        copy, before = _seen(tx, caller, copy_id, annotation_id, proof["token_hash"], approve)
        wanted = _wanted(tx, copy, before, given)
        changed = sorted(name for name, value in wanted.items() if getattr(before, name) != value)
        if not changed:
            return before
        after = rows.update(tx, {**wanted, **proof, "id": before.id, "version": before.version})
        if after is None:
            raise _lost(tx, caller, copy_id, annotation_id, proof["token_hash"], before.version)
        events.recorded(
            tx,
            copy_id,
            "UPDATE_ANN",
            caller.user_id,
            {
                "annotation_id": after.id,
                "page": after.page_index,
                "changed": changed,
                "version_from": before.version,
                "version_to": after.version,
                "score_delta_from": _points(before.score_delta),
                "score_delta_to": _points(after.score_delta),
            },
        )
        return after


def delete(
    rt: Runtime, caller: Principal, copy_id: str, annotation_id: str, token: str | None, approve: Approve
) -> None:
    """Delete an annotation (its row stays as a tombstone). Raises as `change`."""
    caller.require(*access.MARKERS)
    proof = _proof(caller, copy_id, token)
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        _, before = _seen(tx, caller, copy_id, annotation_id, proof["token_hash"], approve)
        if not rows.delete(tx, {**proof, "id": before.id, "version": before.version}):
            raise _lost(tx, caller, copy_id, annotation_id, proof["token_hash"], before.version)
        events.recorded(
            tx,
            copy_id,
            "DELETE_ANN",
            caller.user_id,
            {"annotation_id": before.id, "page": before.page_index, "version": before.version + 1},
        )


def document(annotation: Annotation) -> dict[str, Any]:
    """Write an annotation as the API shows it."""
    shown = asdict(annotation)
    del shown["is_deleted"]
    shown["score_delta"] = _points(annotation.score_delta)
    return shown


def _points(hundredths: int | None) -> int | float | None:
    return None if hundredths is None else scheme.number(hundredths)


def _proof(caller: Principal, copy_id: str, token: str | None) -> dict[str, Any]:
    return {"copy_id": copy_id, "user_id": caller.user_id, "token_hash": token_hash(token)}


def _content(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check everything about an annotation that needs no look at the copy."""
    place = rules.box(*(given.get(name) for name in _PLACE))
    type = rules.type_name(given.get("type"))
    return {
        **asdict(place),
        "type": type,
        "content": drawable("content", rules.content_length(given.get("content") or "")),
        "score_delta": rules.delta_hundredths(given.get("score_delta")),
        "question_id": given.get("question_id"),
        "strokes": rules.strokes(given.get("strokes"), type),
    }


def _same(tx: Tx, caller: Principal, copy_id: str, values: Mapping[str, Any]) -> Annotation:
    """Say why nothing was inserted; return the annotation when this was the repetition of its making."""
    copy = desk.diagnose(tx, caller, copy_id, values["token_hash"])
    found = rows.read(tx, copy_id, values["id"])
    if found is None:
        _page(tx, copy, values["page_id"], values["page_index"])
        _question(copy, values["question_id"])
        raise desk.contended(copy_id)
    if found.is_deleted:
        raise AlreadyExists("ANNOTATION_DELETED", "an annotation with this id was deleted")
    # Once it was changed the first content is gone; that the id is there is all that can be said.
    same = ("type", "content", "score_delta", "question_id", *_PLACE)
    if found.version == 1 and any(getattr(found, name) != values[name] for name in same):
        raise AlreadyExists("ANNOTATION_EXISTS", "another annotation has this id", current=document(found))
    return found


def _seen(
    tx: Tx, caller: Principal, copy_id: str, annotation_id: str, offered_hash: str, approve: Approve
) -> tuple[Copy, Annotation]:
    copy = desk.diagnose(tx, caller, copy_id, offered_hash)
    found = rows.read(tx, copy_id, annotation_id)
    if found is None or found.is_deleted:
        raise NotFound("ANNOTATION_NOT_FOUND", "there is no such annotation")
    try:
        approve(found)
    except Stale as stale:
        if stale.reason == "VERSION_MISMATCH":
            log.warning("OptimisticLockingException: annotation of copy %s changed meanwhile", copy_id)
        raise
    return copy, found


def _lost(tx: Tx, caller: Principal, copy_id: str, annotation_id: str, offered_hash: str, version: int) -> KorrigoError:
    """Find out why a write under a lease and a version touched nothing."""
    copy = desk.diagnose(tx, caller, copy_id, offered_hash)
    found = rows.read(tx, copy.id, annotation_id)
    if found is None or found.is_deleted:
        return NotFound("ANNOTATION_NOT_FOUND", "there is no such annotation")
    if found.version == version:
        return desk.contended(copy_id)
    return Stale("VERSION_MISMATCH", "somebody changed it meanwhile", current=document(found), version=found.version)


def _wanted(tx: Tx, copy: Copy, before: Annotation, given: Mapping[str, Any]) -> dict[str, Any]:
    merged = {
        **{name: getattr(before, name) for name in (*_PLACE, "type", "content", "question_id", "strokes")},
        "score_delta": _points(before.score_delta),
        **{name: value for name, value in given.items() if name not in ("page_id", "page_index")},
    }
    if merged["type"] != before.type and "strokes" not in given and before.strokes is not None:
        merged["strokes"] = None
    wanted = _content(merged)
    if "question_id" in given:
        _question(copy, wanted["question_id"])
    wanted.update(page_id=before.page_id, page_index=before.page_index)
    if given.get("page_id") is not None or given.get("page_index") is not None:
        page = _page(tx, copy, given.get("page_id"), given.get("page_index"))
        wanted.update(page_id=page.page_id, page_index=page.page_index)
    return wanted


def _page(tx: Tx, copy: Copy, page_id: str | None, page_index: int | None) -> assemblies.PageRow:
    page = assemblies.find_page(tx, copy.id, page_id, page_index)
    if page is None:
        raise Invalid("INVALID_PAGE", "the copy has no such page", field="page_id" if page_id else "page_index")
    return page


def _question(copy: Copy, question_id: str | None) -> None:
    if question_id is not None and all(leaf.id != question_id for leaf in copy.leaves):
        raise Invalid("UNKNOWN_QUESTION", "the scheme has no such question", field="question_id")
