"""The statements on locks, and the clause by which every write proves its lease.

All times are the database's clock. `HELD` is put in front of a write: it answers the lock row only for the right
owner and token within the lease, and keeps it until the commit (FOR SHARE), so that a lease can neither end nor be
taken between the check and the write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from korrigo_grading.domain.locks import Lock
from korrigo_grading.models.copies import Copy
from korrigo_kit.db import Tx

HELD = """
WITH held AS (
    SELECT copy_id, marking, fence FROM copy_locks
    WHERE copy_id = %(copy_id)s AND owner_id = %(user_id)s AND token_hash = %(token_hash)s
        AND expires_at > clock_timestamp()
    FOR SHARE)
"""

_GRANT = """
WITH granted AS (
    INSERT INTO copy_locks AS l (copy_id, owner_id, client_id, session_id, token_hash, token_prefix, fence,
        ttl_seconds, acquired_at, heartbeat_at, expires_at)
    VALUES (%(copy_id)s, %(owner_id)s, %(client_id)s, %(session_id)s, %(token_hash)s, %(token_prefix)s, %(fence)s,
        %(ttl)s, clock_timestamp(), clock_timestamp(), clock_timestamp() + make_interval(secs => %(ttl)s))
    ON CONFLICT (copy_id) DO UPDATE SET owner_id = excluded.owner_id, client_id = excluded.client_id,
        session_id = excluded.session_id, token_hash = excluded.token_hash, token_prefix = excluded.token_prefix,
        fence = excluded.fence, ttl_seconds = excluded.ttl_seconds, acquired_at = excluded.acquired_at,
        heartbeat_at = excluded.heartbeat_at, expires_at = excluded.expires_at, marking = excluded.marking
    WHERE l.expires_at <= clock_timestamp()
        OR (%(take_over)s AND (%(is_admin)s OR l.owner_id = excluded.owner_id
            OR l.heartbeat_at <= clock_timestamp() - make_interval(secs => %(stale)s)))
    RETURNING l.copy_id, l.acquired_at, l.expires_at)
UPDATE copies c SET fence = %(fence)s, status = 'LOCKED', version = c.version + 1, updated_at = clock_timestamp(),
    locked_at = g.acquired_at, locked_by = %(owner_id)s,
    assigned_corrector_id = coalesce(c.assigned_corrector_id, %(assign_to)s::uuid),
    assigned_at = CASE WHEN c.assigned_corrector_id IS NULL AND %(assign_to)s::uuid IS NOT NULL
        THEN g.acquired_at ELSE c.assigned_at END
FROM granted g WHERE c.id = g.copy_id AND c.fence < %(fence)s
RETURNING g.expires_at, c.assigned_corrector_id::text AS assigned_corrector_id, clock_timestamp() AS now
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """Until when a lock lasts, by the database's clock."""

    expires_at: datetime
    now: datetime
    assigned_corrector_id: str | None = None

    @property
    def expires_in(self) -> int:
        return max(0, round((self.expires_at - self.now).total_seconds()))


def grant(
    tx: Tx,
    copy: Copy,
    *,
    fence: int,
    owner_id: str,
    client_id: str | None,
    session_id: str,
    token: str,
    token_hash: str,
    ttl_seconds: int,
    assign_to: str | None,
    take_over: bool,
    is_admin: bool,
    stale_seconds: int,
) -> Lease | None:
    """Give the lock under a new fence, over a lease that ended or that yields; None when it does not."""
    row = tx.one(
        _GRANT,
        {
            "copy_id": copy.id,
            "owner_id": owner_id,
            "client_id": client_id,
            "session_id": session_id,
            "token_hash": token_hash,
            "token_prefix": token[:8],
            "fence": fence,
            "ttl": ttl_seconds,
            "assign_to": assign_to,
            "take_over": take_over,
            "is_admin": is_admin,
            "stale": stale_seconds,
        },
    )
    return Lease(row["expires_at"], row["now"], row["assigned_corrector_id"]) if row else None


def refresh(tx: Tx, copy_id: str, *, fence: int, token_hash: str, ttl_seconds: int, session_id: str) -> Lease | None:
    """Renew a live lease for its own session; None when it ended meanwhile."""
    row = tx.one(
        "UPDATE copy_locks SET heartbeat_at = clock_timestamp(), ttl_seconds = %(ttl)s, token_hash = %(token_hash)s,"
        " session_id = %(session_id)s, expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)"
        " WHERE copy_id = %(copy_id)s AND fence = %(fence)s AND expires_at > clock_timestamp()"
        " RETURNING expires_at, clock_timestamp() AS now",
        {"copy_id": copy_id, "fence": fence, "token_hash": token_hash, "ttl": ttl_seconds, "session_id": session_id},
    )
    return Lease(**row) if row else None


def beat(tx: Tx, *, copy_id: str, user_id: str, token_hash: str, marks_any: bool) -> Lease | None:
    """Renew a live lease by its token for as long as it was granted; a lease that ended stays ended.

    None too for a marker (not `marks_any`) who is no corrector of the exam any more.
    """
    row = tx.one(
        "UPDATE copy_locks l SET heartbeat_at = clock_timestamp(),"
        " expires_at = clock_timestamp() + make_interval(secs => l.ttl_seconds)"
        " FROM copies c JOIN exams e ON e.id = c.exam_id"
        " WHERE c.id = l.copy_id AND (%(marks_any)s OR e.corrector_ids @> ARRAY[%(user_id)s::uuid])"
        " AND l.copy_id = %(copy_id)s AND l.owner_id = %(user_id)s AND l.token_hash = %(token_hash)s"
        " AND l.expires_at > clock_timestamp()"
        " RETURNING l.expires_at, clock_timestamp() AS now",
        {"copy_id": copy_id, "user_id": user_id, "token_hash": token_hash, "marks_any": marks_any},
    )
    return Lease(**row) if row else None


def release(tx: Tx, *, copy_id: str, user_id: str, token_hash: str) -> bool:
    """End a live lease by its token."""
    return (
        tx.run(
            "DELETE FROM copy_locks WHERE copy_id = %s AND owner_id = %s AND token_hash = %s"
            " AND expires_at > clock_timestamp()",
            (copy_id, user_id, token_hash),
        )
        == 1
    )


def end(tx: Tx, copy_id: str, fence: int, *, only_expired: bool) -> bool:
    """End the lock of one grant, whoever holds it; never another grant's."""
    return (
        tx.run(
            "DELETE FROM copy_locks WHERE copy_id = %s AND fence = %s AND (NOT %s OR expires_at <= clock_timestamp())",
            (copy_id, fence, only_expired),
        )
        == 1
    )


def seize(tx: Tx, *, copy_id: str, user_id: str, token_hash: str) -> dict[str, Any] | None:
    """Keep a live lease for reading and writing by one caller at a time; answers marking and fence."""
    return tx.one(
        "SELECT marking, fence FROM copy_locks WHERE copy_id = %s AND owner_id = %s AND token_hash = %s"
        " AND expires_at > clock_timestamp() FOR NO KEY UPDATE",
        (copy_id, user_id, token_hash),
    )


def expired(tx: Tx, limit: int) -> list[str]:
    """List copies whose lease ended."""
    rows = tx.all(
        "SELECT copy_id::text AS id FROM copy_locks WHERE expires_at <= clock_timestamp() ORDER BY expires_at LIMIT %s",
        (limit,),
    )
    return [row["id"] for row in rows]


def orphaned(tx: Tx, limit: int) -> list[str]:
    """List copies that are LOCKED without a lock: somebody deleted the row by hand."""
    rows = tx.all(
        "SELECT c.id::text AS id FROM copies c WHERE c.status = 'LOCKED' AND c.deleted_at IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM copy_locks l WHERE l.copy_id = c.id) ORDER BY c.updated_at LIMIT %s",
        (limit,),
    )
    return [row["id"] for row in rows]


@dataclass(frozen=True, slots=True)
class Listed:
    """A lock in the list of all."""

    copy_id: str
    exam_id: str
    anonymous_id: str
    lock: Lock


def page(tx: Tx, *, after: tuple[str, str] | None, limit: int) -> Sequence[Listed]:
    """List all locks, oldest grant first."""
    rows = tx.all(
        "SELECT l.copy_id::text AS copy_id, c.exam_id::text AS exam_id, c.anonymous_id, l.owner_id::text AS owner_id,"
        " coalesce(u.username, '') AS owner_name, l.client_id, l.token_hash, l.fence, l.marking, l.ttl_seconds,"
        " l.acquired_at, l.heartbeat_at, l.expires_at, clock_timestamp() AS now"
        " FROM copy_locks l JOIN copies c ON c.id = l.copy_id LEFT JOIN users u ON u.id = l.owner_id"
        " WHERE (%(at)s::timestamptz IS NULL OR (l.acquired_at, l.copy_id) > (%(at)s::timestamptz, %(id)s::uuid))"
        " ORDER BY l.acquired_at, l.copy_id LIMIT %(limit)s",
        {"at": after[0] if after else None, "id": after[1] if after else None, "limit": limit},
    )
    return [
        Listed(
            row["copy_id"],
            row["exam_id"],
            row["anonymous_id"],
            Lock(**{key: row[key] for key in Lock.__dataclass_fields__}),
        )
        for row in rows
    ]
