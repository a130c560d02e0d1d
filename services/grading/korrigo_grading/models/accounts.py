"""Accounts and sessions: their rows, and the statements on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from korrigo_grading.domain.passwords import account_key
from korrigo_kit import auth
from korrigo_kit.db import Tx

# Tokens are refused for a while longer than they live, because verifiers allow for clocks that differ.
REFUSED_LONGER_SECONDS = 60
_COLUMNS = (
    "id::text AS id, username, email, roles, is_active, must_change_password, last_login, created_at, updated_at,"
    " version"
)


@dataclass(frozen=True, slots=True)
class Account:
    """An account as its readers see it; its password's stored form is never part of it."""

    id: str
    username: str
    email: str | None
    roles: tuple[str, ...]
    is_active: bool
    must_change_password: bool
    last_login: datetime | None
    created_at: datetime
    updated_at: datetime
    version: int


def account(row: Mapping[str, Any]) -> Account:
    """Read a row."""
    fields = {name: row[name] for name in Account.__slots__}
    return Account(**{**fields, "roles": tuple(row["roles"])})


def find(tx: Tx, user_id: str) -> Account | None:
    """Read an account by id; the system account is none."""
    row = tx.one(f"SELECT {_COLUMNS} FROM users WHERE id = %s AND NOT is_system", (user_id,))
    return account(row) if row else None


def find_by_key(tx: Tx, key: str) -> Account | None:
    """Read an account by its folded name."""
    row = tx.one(f"SELECT {_COLUMNS} FROM users WHERE account_key = %s AND NOT is_system", (key,))
    return account(row) if row else None


def lock(tx: Tx, user_id: str) -> Account | None:
    """Read an account by id and keep everybody else from changing it until the commit."""
    row = tx.one(f"SELECT {_COLUMNS} FROM users WHERE id = %s AND NOT is_system FOR NO KEY UPDATE", (user_id,))
    return account(row) if row else None


def lock_for_login(tx: Tx, username: str) -> tuple[Account, str | None] | None:
    """Read an account that may log in, with the stored form of its password, under its lock."""
    row = tx.one(
        f"SELECT {_COLUMNS}, password_hash FROM users"
        " WHERE account_key = %s AND is_active AND NOT is_system FOR NO KEY UPDATE",
        (account_key(username),),
    )
    return (account(row), row["password_hash"]) if row else None


def password_hash(tx: Tx, user_id: str) -> str | None:
    """Read the stored form of an account's password."""
    row = tx.one("SELECT password_hash FROM users WHERE id = %s", (user_id,))
    return row["password_hash"] if row else None


def page(tx: Tx, after_key: str, limit: int) -> list[Account]:
    """List accounts by folded name, from after one on."""
    rows = tx.all(
        f'SELECT {_COLUMNS} FROM users WHERE NOT is_system AND account_key COLLATE "C" > %s'
        ' ORDER BY account_key COLLATE "C" LIMIT %s',
        (after_key, limit),
    )
    return [account(row) for row in rows]


def insert(
    tx: Tx,
    *,
    user_id: str,
    username: str,
    stored_password: str,
    roles: Sequence[str],
    email: str | None,
    must_change_password: bool,
) -> Account | None:
    """Write a new account; None when the name is taken."""
    # No violation of the key, which PostgreSQL would log with the name.
    row = tx.one(
        "INSERT INTO users (id, username, account_key, password_hash, roles, email, must_change_password)"
        f" VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (account_key) DO NOTHING RETURNING {_COLUMNS}",
        (user_id, username, account_key(username), stored_password, list(roles), email, must_change_password),
    )
    return account(row) if row else None


def update(tx: Tx, user_id: str, fields: Mapping[str, Any]) -> Account:
    """Write these columns of an account and count its version up."""
    assert set(fields) <= {"email", "roles", "is_active", "password_hash", "must_change_password"}
    changes = "".join(f"{column} = %({column})s, " for column in fields)
    return account(
        tx.row(
            f"UPDATE users SET {changes}version = version + 1, updated_at = clock_timestamp()"
            f" WHERE id = %(id)s RETURNING {_COLUMNS}",
            {**fields, "id": user_id},
        )
    )


def lock_accounts(tx: Tx) -> None:
    """Let nobody else change accounts until the commit, so that two admins cannot remove each other at once."""
    tx.run("SELECT pg_advisory_xact_lock(hashtext('grading.accounts'))")


def count_active_admins(tx: Tx) -> int:
    """Count the admins that can log in."""
    row = tx.row("SELECT count(*) AS n FROM users WHERE is_active AND 'admin' = ANY(roles)")
    return int(row["n"])


def unknown_correctors(tx: Tx, ids: Sequence[str]) -> list[str]:
    """Return the ids that are not active accounts with a marking role."""
    rows = tx.all(
        "SELECT id::text AS id FROM users"
        " WHERE id = ANY(%s::uuid[]) AND is_active AND roles && ARRAY['marker', 'lead_marker']",
        (list(ids),),
    )
    known = {row["id"] for row in rows}
    return [id for id in ids if id not in known]


# ------------------------------------------------------------------------------------------------------ sessions
def open_session(tx: Tx, session_id: str, user_id: str, address: str, seconds: int) -> None:
    """Write a session and note the login."""
    tx.run(
        "INSERT INTO sessions (id, user_id, address, expires_at)"
        " VALUES (%s, %s, %s, clock_timestamp() + make_interval(secs => %s))",
        (session_id, user_id, address, seconds + REFUSED_LONGER_SECONDS),
    )
    tx.run("UPDATE users SET last_login = clock_timestamp() WHERE id = %s", (user_id,))


def revoke_session(tx: Tx, session_id: str) -> int:
    """End one session; returns how many lived."""
    return tx.run(
        "UPDATE sessions SET revoked_at = clock_timestamp()"
        " WHERE id = %s AND revoked_at IS NULL AND expires_at > clock_timestamp()",
        (session_id,),
    )


def revoke_sessions(tx: Tx, user_id: str) -> int:
    """End all sessions of an account; returns how many lived."""
    return tx.run(
        "UPDATE sessions SET revoked_at = clock_timestamp()"
        " WHERE user_id = %s AND revoked_at IS NULL AND expires_at > clock_timestamp()",
        (user_id,),
    )


def with_sessions(tx: Tx) -> list[tuple[str, str, int]]:
    """List (id, user name, sessions) of the accounts that are logged in."""
    rows = tx.all(
        "SELECT u.id::text AS id, u.username, count(*) AS sessions FROM sessions s JOIN users u ON u.id = s.user_id"
        " WHERE s.revoked_at IS NULL AND s.expires_at > clock_timestamp() GROUP BY u.id ORDER BY u.account_key"
    )
    return [(row["id"], row["username"], row["sessions"]) for row in rows]


def last_session_end(tx: Tx) -> datetime | None:
    """Return when the last session that lives will end."""
    found: datetime | None = tx.row(
        "SELECT max(expires_at) AS ends FROM sessions WHERE revoked_at IS NULL AND expires_at > clock_timestamp()"
    )["ends"]
    return found


def refused_sessions(tx: Tx, user_id: str) -> list[tuple[str, int]]:
    """List the revoked sessions whose tokens could still pass, with the Unix second of their end."""
    rows = tx.all(
        "SELECT id::text AS id, ceil(extract(epoch FROM expires_at))::bigint AS ends FROM sessions"
        " WHERE user_id = %s AND revoked_at IS NOT NULL AND expires_at > clock_timestamp() ORDER BY id",
        (user_id,),
    )
    return [(row["id"], row["ends"]) for row in rows]


def refuse(tx: Tx, sessions: Sequence[tuple[str, int]]) -> None:
    """Refuse the tokens of these sessions in this room."""
    for session_id, ends in sessions:
        auth.revoke(tx, session_id, ends)


def prune_sessions(tx: Tx, days: int) -> int:
    """Delete sessions that ended long ago."""
    return tx.run("DELETE FROM sessions WHERE expires_at < clock_timestamp() - make_interval(days => %s)", (days,))


# ------------------------------------------------------------------------------------------------------ attempts
@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts within a window, and the seconds until the oldest that count leaves it."""

    count: int
    retry_after_seconds: int


def account_sha(username: str) -> str:
    """Return what attempts are kept under; works for names that nobody has."""
    return hashlib.sha256(account_key(username).encode("utf-8", "surrogatepass")).hexdigest()


def lock_attempts(tx: Tx, sha: str) -> None:
    """Let attempts at one account follow each other, so that a hundred at once count as a hundred."""
    tx.run("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (sha,))


def attempts(
    tx: Tx, kind: str, window_seconds: int, limit: int, *, sha: str | None = None, address: str | None = None
) -> Attempts:
    """Count attempts of an account, from an address, or of an account from an address."""
    row = tx.row(
        "SELECT count(*) AS n, coalesce(ceil(extract(epoch FROM min(at) - clock_timestamp())), 0)::int AS age"
        " FROM (SELECT at FROM login_attempts WHERE kind = %(kind)s"
        "   AND (%(sha)s::text IS NULL OR account_sha = %(sha)s)"
        "   AND (%(address)s::text IS NULL OR address = %(address)s)"
        "   AND at > clock_timestamp() - make_interval(secs => %(window)s)"
        "   ORDER BY at DESC LIMIT %(limit)s) AS latest",
        {"kind": kind, "sha": sha, "address": address, "window": window_seconds, "limit": limit},
    )
    return Attempts(row["n"], max(1, window_seconds + row["age"]))


def add_attempt(tx: Tx, kind: str, sha: str, address: str) -> None:
    """Note an attempt."""
    tx.run("INSERT INTO login_attempts (kind, account_sha, address) VALUES (%s, %s, %s)", (kind, sha, address))


def forget_failures(tx: Tx, sha: str, address: str) -> None:
    """Forget the failed logins of an account from an address, after one that succeeded."""
    tx.run("DELETE FROM login_attempts WHERE kind = 'login' AND account_sha = %s AND address = %s", (sha, address))


def is_known_address(tx: Tx, user_id: str, address: str) -> bool:
    """Tell whether the account has logged in from this address lately."""
    return tx.one("SELECT 1 FROM sessions WHERE user_id = %s AND address = %s LIMIT 1", (user_id, address)) is not None


def prune_attempts(tx: Tx) -> int:
    """Delete attempts that no window reaches."""
    return tx.run("DELETE FROM login_attempts WHERE at < clock_timestamp() - interval '1 day'")
