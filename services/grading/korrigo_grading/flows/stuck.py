"""Copies that are stuck in finalising, and locks that linger (kit.stuck decides what stuck means).

Grading sees its own requests; what render has taken on, render lists itself. So each open request that is too old is
looked up there: render never heard of it, or has answered and the answer did not arrive. A copy that failed for good
is listed until somebody retries it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from korrigo_grading.domain import statuses
from korrigo_kit import stuck
from korrigo_kit.db import Tx
from korrigo_kit.errors import KorrigoError, NotFound
from korrigo_kit.room import Runtime
from korrigo_kit.stuck import Stuck
from korrigo_protos.render.v1 import render_pb2, render_pb2_grpc

# Requests looked up at render at once, oldest first: enough to raise the alarm, few enough for a scrape.
_LOOKED_UP = 50


def found(rt: Runtime) -> list[Stuck]:
    """List what is stuck, oldest first."""
    after_seconds = rt.settings.jobs.stuck_seconds
    with rt.db.transaction() as tx:
        listed = [*_failed(tx), *_locks(tx, after_seconds)]
        requests = _old_requests(tx, after_seconds)
        has_worker = stuck.has_worker(tx)
    for row in requests:
        reason = _reason(rt, row, after_seconds, has_worker=has_worker)
        if reason:
            listed.append(_copy(row, "finalize", reason, row["requested_at"]))
    return list(stuck.oldest_first(listed))


def _copy(row: dict[str, Any], stage: str, reason: str, since: datetime) -> Stuck:
    return Stuck(
        room="grading",
        stage=stage,
        reason=reason,
        subject_type="copy",
        subject_id=row["id"],
        since=since,
        attempts=row.get("attempts", 0),
        error_reason=row.get("error", ""),
        exam_id=row["exam_id"],
        anonymous_id=row["anonymous_id"],
    )


_NAMED = "c.id::text AS id, c.exam_id::text AS exam_id, c.anonymous_id"


def _failed(tx: Tx) -> list[Stuck]:
    rows = tx.all(
        f"SELECT {_NAMED}, c.updated_at, c.grading_retries AS attempts, coalesce((SELECT f.error_reason"
        "   FROM finalisations f WHERE f.copy_id = c.id ORDER BY f.revision DESC, f.request DESC LIMIT 1), '') AS error"
        " FROM copies c WHERE c.status = %s AND c.deleted_at IS NULL",
        (statuses.GRADING_FAILED,),
    )
    return [_copy(row, "finalize", stuck.RETRIES_EXHAUSTED, row["updated_at"]) for row in rows]


def _locks(tx: Tx, after_seconds: float) -> list[Stuck]:
    rows = tx.all(
        f"SELECT {_NAMED}, l.expires_at, c.updated_at FROM copies c LEFT JOIN copy_locks l ON l.copy_id = c.id"
        " WHERE c.status = %(locked)s AND c.deleted_at IS NULL"
        " AND coalesce(l.expires_at, c.updated_at) < clock_timestamp() - make_interval(secs => %(after)s)",
        {"locked": statuses.LOCKED, "after": after_seconds},
    )
    return [
        _copy(
            row,
            "lock",
            stuck.LOCK_EXPIRED if row["expires_at"] else stuck.NO_PROGRESS,
            row["expires_at"] or row["updated_at"],
        )
        for row in rows
    ]


def _old_requests(tx: Tx, after_seconds: float) -> list[dict[str, Any]]:
    return tx.all(
        f"SELECT {_NAMED}, f.revision, f.requested_at, f.attempts FROM finalisations f"
        " JOIN copies c ON c.id = f.copy_id AND c.revision = f.revision"
        " WHERE f.state = 'REQUESTED' AND c.status = %s AND c.deleted_at IS NULL"
        " AND f.requested_at < clock_timestamp() - make_interval(secs => %s) ORDER BY f.requested_at LIMIT %s",
        (statuses.GRADING_IN_PROGRESS, after_seconds, _LOOKED_UP),
    )


def _reason(rt: Runtime, row: dict[str, Any], after_seconds: float, *, has_worker: bool) -> str | None:
    asked = render_pb2.GetRenderRequest(copy_id=row["id"], revision=row["revision"])
    try:
        with rt.channels.asking("render"):
            answer = rt.channels.stub("render", render_pb2_grpc.RenderServiceStub).GetRender(asked)
    except NotFound:
        return stuck.LOST_TASK
    except KorrigoError:  # nobody knows; the copy waits all the same
        return stuck.NO_PROGRESS
    if answer.state == "REQUESTED" or answer.settled_seconds < after_seconds:
        return None
    return stuck.LOST_TASK if has_worker else stuck.WORKER_DEAD
