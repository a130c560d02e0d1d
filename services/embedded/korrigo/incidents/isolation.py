"""Nobody changes anything until somebody has understood: evidence first, then read-only, then every session ends.

Each step may be repeated. Who must read on logs in again; with a password that was stolen he can, so whoever may have
it gets a new one (docs/guides/security-incident.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from korrigo.switches import owner_database, tell, turn
from korrigo_kit.db import Tx
from korrigo_kit.room import Runtime
from korrigo_kit.settings import Settings
from korrigo_kit.switches import READ_ONLY


@dataclass(frozen=True, slots=True)
class Isolation:
    """What was, or would be, done."""

    was_read_only: bool
    sessions: int
    people: int


def look(settings: Settings, grading: Runtime) -> Isolation:
    """Tell what isolating would do."""
    from korrigo_grading.flows import sessions

    found = sessions.logged_in(grading)
    database = owner_database(settings)
    try:
        with database.transaction() as tx:
            return Isolation(_is_read_only(tx), sum(one.sessions for one in found), len(found))
    finally:
        database.close()


def begin(settings: Settings, grading: Runtime, evidence_sha256: str, actor_id: str) -> Isolation:
    """Refuse changes, end every session, and tell the audit trail which evidence was kept."""
    from korrigo_grading.flows import sessions

    database = owner_database(settings)
    try:
        with database.transaction() as tx:
            was = _is_read_only(tx)
            turn(tx, READ_ONLY, 1)
            tell(tx, "ISOLATED", {"evidence_sha256": evidence_sha256, "was_read_only": was}, actor_id)
    finally:
        database.close()
    found = sessions.logged_in(grading)
    ended = sum(sessions.clear(grading, one.user_id, actor_id) for one in found)
    return Isolation(was, ended, len(found))


def end(settings: Settings) -> bool:
    """Allow changes again; False when they were allowed."""
    database = owner_database(settings)
    try:
        with database.transaction() as tx:
            was = _is_read_only(tx)
            if was:
                turn(tx, READ_ONLY, 0)
                tell(tx, "ISOLATION_ENDED", {})
            return was
    finally:
        database.close()


def _is_read_only(tx: Tx) -> bool:
    row = tx.one("SELECT value FROM switches WHERE name = %s FOR UPDATE", (READ_ONLY,))
    return bool(row and row["value"])
