"""Finalisations: every request for a final PDF, its manifest and its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from korrigo_kit.db import Tx


@dataclass(frozen=True, slots=True)
class Finalisation:
    """One request; score and max_score in hundredths."""

    id: str
    copy_id: str
    revision: int
    request: int
    state: str
    manifest_sha256: str
    score: int
    max_score: int
    marker_id: str
    requested_by: str
    attempts: int
    final_sha256: str | None
    final_size: int | None
    finished_at: datetime | None
    age_seconds: float


_SELECT = (
    "SELECT id::text AS id, copy_id::text AS copy_id, revision, request, state, manifest_sha256,"
    " (score * 100)::bigint AS score, (max_score * 100)::bigint AS max_score, marker_id::text AS marker_id,"
    " requested_by::text AS requested_by, attempts, final_sha256, final_size, finished_at,"
    " extract(epoch FROM clock_timestamp() - requested_at)::float8 AS age_seconds FROM finalisations"
)


def _one(row: dict[str, Any] | None) -> Finalisation | None:
    return Finalisation(**row) if row else None


def newest(tx: Tx, copy_id: str, revision: int) -> Finalisation | None:
    """Return the last request of a copy's revision."""
    return _one(
        tx.one(f"{_SELECT} WHERE copy_id = %s AND revision = %s ORDER BY request DESC LIMIT 1", (copy_id, revision))
    )


def succeeded(tx: Tx, copy_id: str, revision: int | None) -> Finalisation | None:
    """Return the success of a revision, or of the last graded one."""
    return _one(
        tx.one(
            f"{_SELECT} WHERE copy_id = %s AND state = 'SUCCEEDED' AND (%s::integer IS NULL OR revision = %s::integer)"
            " ORDER BY revision DESC LIMIT 1",
            (copy_id, revision, revision),
        )
    )


def add(tx: Tx, values: dict[str, Any]) -> None:
    """Note a request; score and max_score in hundredths."""
    tx.run(
        "INSERT INTO finalisations (id, copy_id, revision, request, manifest_sha256, score, max_score, marker_id,"
        " requested_by) VALUES (%(id)s, %(copy_id)s, %(revision)s, %(request)s, %(manifest_sha256)s,"
        " %(score)s / 100.0, %(max_score)s / 100.0, %(marker_id)s, %(requested_by)s)",
        values,
    )


def succeed(tx: Tx, finalisation_id: str, values: dict[str, Any]) -> bool:
    """Note the final PDF of a request that is still open."""
    return (
        tx.run(
            "UPDATE finalisations SET state = 'SUCCEEDED', attempts = %(attempts)s, final_sha256 = %(final_sha256)s,"
            " final_size = %(final_size)s, pages = %(pages)s, duration_ms = %(duration_ms)s, error_reason = NULL,"
            " finished_at = clock_timestamp() WHERE id = %(id)s AND state = 'REQUESTED'",
            {**values, "id": finalisation_id},
        )
        == 1
    )


def fail(tx: Tx, finalisation_id: str, *, attempts: int, reason: str, duration_ms: int, is_final: bool) -> bool:
    """Note a failed attempt of a request that is still open; the last one closes it."""
    return (
        tx.run(
            "UPDATE finalisations SET attempts = %(attempts)s, error_reason = %(reason)s,"
            " duration_ms = %(duration_ms)s, state = CASE WHEN %(final)s THEN 'FAILED' ELSE state END,"
            " finished_at = CASE WHEN %(final)s THEN clock_timestamp() END"
            " WHERE id = %(id)s AND state = 'REQUESTED'",
            {
                "id": finalisation_id,
                "attempts": attempts,
                "reason": reason,
                "duration_ms": duration_ms,
                "final": is_final,
            },
        )
        == 1
    )
