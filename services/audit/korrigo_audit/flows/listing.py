"""Reading the trail: one copy's events in causal order, or all events by time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from korrigo_kit.db import Database

_COLUMNS = (
    "seq, subject_type, subject_id, source, source_seq, action, actor_id, at, metadata, request_id,"
    " encode(leaf_hash, 'hex') AS leaf_hash, happened_at, id::text AS id"
)


def of_subject(
    database: Database, subject_type: str, subject_id: str, *, after_seq: int, limit: int
) -> list[dict[str, Any]] | None:
    """List the actions of one subject by number; None when nothing was ever heard of it."""
    with database.transaction() as tx:
        head = tx.one(
            "SELECT last_seq FROM record_heads WHERE subject_type = %s AND subject_id = %s", (subject_type, subject_id)
        )
        if head is None:
            return None
        return tx.all(
            f"SELECT {_COLUMNS} FROM records WHERE subject_type = %s AND subject_id = %s AND seq > %s"
            " AND action IS NOT NULL ORDER BY seq LIMIT %s",
            (subject_type, subject_id, after_seq, limit),
        )


def of_all(
    database: Database,
    *,
    since: datetime | None,
    action: str | None,
    after: tuple[str, str] | None,
    limit: int,
) -> list[dict[str, Any]]:
    """List actions of all subjects, oldest first, from a moment on."""
    with database.transaction() as tx:
        return tx.all(
            f"SELECT {_COLUMNS} FROM records WHERE action IS NOT NULL"
            " AND (%(since)s::timestamptz IS NULL OR happened_at >= %(since)s)"
            " AND (%(action)s::text IS NULL OR action = %(action)s)"
            " AND (%(after_at)s::timestamptz IS NULL OR (happened_at, id) > (%(after_at)s, %(after_id)s::uuid))"
            " ORDER BY happened_at, id LIMIT %(limit)s",
            {
                "since": since,
                "action": action,
                "after_at": after[0] if after else None,
                "after_id": after[1] if after else None,
                "limit": limit,
            },
        )


def whole(
    database: Database,
    *,
    subjects: Sequence[tuple[str, str]] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    at_once: int = 1000,
) -> Iterator[dict[str, Any]]:
    """Yield every record with its leaf, technical ones included, so that numbers and hashes can be checked elsewhere.

    Ordered by stream, source and number. Started by `korrigo audit export` and `korrigo archive_old_exams`.
    """
    after: dict[str, Any] = {"type": "", "id": "", "source": "", "number": 0}
    kinds = None if subjects is None else [kind for kind, _ in subjects]
    ids = None if subjects is None else [subject_id for _, subject_id in subjects]
    while True:
        with database.transaction() as tx:
            rows = tx.all(
                f"SELECT {_COLUMNS}, type, convert_from(leaf, 'UTF8') AS leaf FROM records"
                " WHERE (subject_type, subject_id, source, source_seq) > (%(type)s, %(id)s, %(source)s, %(number)s)"
                " AND (%(ids)s::text[] IS NULL OR (subject_type, subject_id) IN"
                "   (SELECT * FROM unnest(%(kinds)s::text[], %(ids)s::text[])))"
                " AND (%(since)s::timestamptz IS NULL OR happened_at >= %(since)s)"
                " AND (%(until)s::timestamptz IS NULL OR happened_at < %(until)s)"
                " ORDER BY subject_type, subject_id, source, source_seq LIMIT %(limit)s",
                {**after, "kinds": kinds, "ids": ids, "since": since, "until": until, "limit": at_once},
            )
        yield from rows
        if len(rows) < at_once:
            return
        last = rows[-1]
        after = {
            "type": last["subject_type"], "id": last["subject_id"], "source": last["source"],
            "number": last["source_seq"],
        }  # fmt: skip


# What a person did to heal or to protect, besides everything that failed.
_ACTS = (
    "INTERVENTION", "RECOVER", "RETRY", "RESTORE", "READ_ONLY", "SESSIONS_CLEARED", "SECRETS_ROTATED", "ISOLATED",
    "ISOLATION_ENDED", "TOKEN_ISSUED", "USER_CREATED", "USER_UPDATED", "REOPEN", "BACKFILL", "ARCHIVE",
    "ORPHANS_TRASHED", "TEMP_CLEARED", "REBUILD_INDEX",
)  # fmt: skip


def notable(database: Database, since: datetime, until: datetime, limit: int = 2000) -> list[dict[str, Any]]:
    """List what failed and what was done about it in a time, oldest first. Started by `korrigo incident`."""
    with database.transaction() as tx:
        return tx.all(
            f"SELECT {_COLUMNS} FROM records WHERE action IS NOT NULL AND happened_at BETWEEN %(since)s AND %(until)s"
            " AND (action = ANY(%(acts)s) OR metadata ->> 'success' = 'false'"
            "   OR (action = 'UNLOCK' AND metadata ->> 'reason' IN ('forced', 'reconciled')))"
            " ORDER BY happened_at, id LIMIT %(limit)s",
            {"since": since, "until": until, "acts": list(_ACTS), "limit": limit},
        )
