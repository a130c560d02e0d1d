"""The playbooks' five tables for people who work with SQL at 03:00 (domain.md 1.1).

Schema `playbook`, role `korrigo_support` with that search path: SELECT on the five, and DELETE on
`grading_copylock`, which ends the lease safely; the sweeper then tells UNLOCK (forced) and makes the copy READY.
Times exist under both names that the playbooks use. Installed by `korrigo migrate` after the rooms' schemas.

Four are views. `exams_copy` is a table, because the playbooks group by its id alone, which PostgreSQL allows only
for what has a primary key, and no view has one. A trigger writes it in the transaction that writes grading.copies,
so that both show the same at every moment; `install` compares them and mends what a restore left out. The trigger's
function lies in grading's schema and does nothing where there is no schema `playbook`: a dump of the rooms' schemas
loads by itself.
"""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from psycopg import sql

from korrigo_kit.credentials import role_password
from korrigo_kit.migrate import ADVISORY_LOCK
from korrigo_kit.settings import DatabaseSettings

log = logging.getLogger("korrigo.playbook")

ROLE = "korrigo_support"
VIEWS = ("exams_copy", "grading_gradingevent", "grading_annotation", "grading_copylock", "auth_user")

# Column of exams_copy: its type, and what it is of a row of grading.copies.
_COPY = {
    "id": ("uuid PRIMARY KEY", "id"),
    "exam_id": ("uuid NOT NULL", "exam_id"),
    "anonymous_id": ("text NOT NULL", "anonymous_id"),
    "status": ("text NOT NULL", "status"),
    "revision": ("integer NOT NULL", "revision"),
    "version": ("bigint NOT NULL", "version"),
    "assigned_corrector_id": ("uuid", "assigned_corrector_id"),
    "dispatch_run_id": ("uuid", "dispatch_run_id"),
    "assigned_at": ("timestamptz", "assigned_at"),
    "created_by": ("uuid NOT NULL", "created_by"),
    "created_at": ("timestamptz NOT NULL", "created_at"),
    "updated_at": ("timestamptz NOT NULL", "updated_at"),
    "validated_at": ("timestamptz", "validated_at"),
    "locked_at": ("timestamptz", "locked_at"),
    "locked_by": ("uuid", "locked_by"),
    "graded_at": ("timestamptz", "graded_at"),
    "grading_retries": ("integer NOT NULL", "grading_retries"),
    "grading_error_message": ("text NOT NULL", "coalesce({row}.grading_error_message, '')"),
    "final_score": ("numeric(8,2)", "final_score"),
    "deleted": ("boolean NOT NULL", "{row}.deleted_at IS NOT NULL"),
}


def _values(row: str) -> str:
    """List what the columns of exams_copy are, of this row of grading.copies."""
    return ", ".join(
        text.format(row=row) if "{row}" in text else f"{row}.{text}" for _, text in _COPY.values()
    )  # fmt: skip


_NAMES = ", ".join(_COPY)
_UPSERT = f"""ON CONFLICT (id) DO UPDATE SET ({_NAMES}) = ROW ({", ".join(f"excluded.{name}" for name in _COPY)})
    WHERE e IS DISTINCT FROM excluded"""
_TABLE = f"""
CREATE TABLE IF NOT EXISTS playbook.exams_copy ({", ".join(f"{name} {kind}" for name, (kind, _) in _COPY.items())});
CREATE INDEX IF NOT EXISTS exams_copy_status ON playbook.exams_copy (status);
CREATE INDEX IF NOT EXISTS exams_copy_exam ON playbook.exams_copy (exam_id);
COMMENT ON TABLE playbook.exams_copy IS 'grading.copies under the playbooks'' names; written by its trigger only';
CREATE OR REPLACE FUNCTION grading.show_in_playbook() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regclass('playbook.exams_copy') IS NULL THEN
        RETURN NULL;
    ELSIF TG_OP = 'DELETE' THEN
        DELETE FROM playbook.exams_copy WHERE id = OLD.id;
    ELSE
        INSERT INTO playbook.exams_copy AS e ({_NAMES}) VALUES ({_values("NEW")})
        {_UPSERT};
    END IF;
    RETURN NULL;
END $$;
ALTER FUNCTION grading.show_in_playbook() OWNER TO korrigo_grading_owner;
GRANT USAGE ON SCHEMA playbook TO korrigo_grading_owner;
GRANT SELECT, INSERT, UPDATE, DELETE ON playbook.exams_copy TO korrigo_grading_owner;
"""
_HAS_TRIGGER = """
SELECT 1 FROM pg_trigger WHERE tgrelid = 'grading.copies'::regclass AND tgname = 'show_in_playbook'
"""
# Creating it waits for whoever writes copies and keeps the others out until the rows are there too.
_TRIGGER = """
CREATE TRIGGER show_in_playbook AFTER INSERT OR UPDATE OR DELETE ON grading.copies
    FOR EACH ROW EXECUTE FUNCTION grading.show_in_playbook()
"""
# One statement sees one moment, and at every moment the two are equal.
_DIFFERS = f"""
SELECT EXISTS (
    (SELECT {_values("c")} FROM grading.copies c EXCEPT ALL SELECT {_NAMES} FROM playbook.exams_copy)
    UNION ALL
    (SELECT {_NAMES} FROM playbook.exams_copy EXCEPT ALL SELECT {_values("c")} FROM grading.copies c)
)
"""
_MEND = f"""
LOCK TABLE grading.copies IN SHARE ROW EXCLUSIVE MODE;
DELETE FROM playbook.exams_copy e WHERE NOT EXISTS (SELECT FROM grading.copies c WHERE c.id = e.id);
INSERT INTO playbook.exams_copy AS e ({_NAMES}) SELECT {_values("c")} FROM grading.copies c
{_UPSERT};
"""

_VIEWS = """
CREATE OR REPLACE VIEW playbook.grading_gradingevent AS
SELECT r.id, r.subject_id::uuid AS copy_id, r.action, r.actor_id::uuid AS actor_id,
       r.happened_at AS timestamp, r.happened_at AS created_at,
       r.metadata || coalesce(t.texts, '{}') AS metadata, r.request_id, r.source, r.source_seq
FROM audit.records r
LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(e.key, e.text) AS texts
    FROM (SELECT event_id, key, text FROM grading.event_texts
          UNION ALL SELECT event_id, key, text FROM ingest.event_texts) e
    WHERE e.event_id = r.id
) t ON true
WHERE r.subject_type = 'copy' AND r.action IS NOT NULL;
CREATE OR REPLACE VIEW playbook.grading_annotation AS
SELECT a.id, a.copy_id, p.page_index, a.x, a.y, a.w, a.h, a.content, a.type, a.score_delta, a.created_by AS
       created_by_id, a.created_at, a.updated_at, a.version
FROM grading.annotations a
LEFT JOIN grading.copy_pages p ON p.copy_id = a.copy_id AND p.page_id = a.page_id
WHERE a.deleted_at IS NULL AND a.marking = 1;
CREATE OR REPLACE VIEW playbook.grading_copylock AS
SELECT copy_id AS id, copy_id, owner_id, token_prefix AS token, acquired_at AS locked_at, acquired_at AS created_at,
       heartbeat_at AS updated_at, expires_at
FROM grading.copy_locks WHERE expires_at > 'epoch';
CREATE OR REPLACE VIEW playbook.auth_user AS
SELECT id, username, email, is_active, last_login FROM grading.users;
CREATE OR REPLACE FUNCTION playbook.release_lock() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = grading, pg_temp AS $$
BEGIN
    -- The lease is over at once and nobody sees it here; the sweeper ends it and tells UNLOCK, reason forced
    -- (korrigo_grading.domain.locks, FORCED_AT).
    UPDATE copies SET fence = fence + 1 WHERE id = OLD.copy_id;
    UPDATE copy_locks SET expires_at = 'epoch' WHERE copy_id = OLD.copy_id;
    RETURN OLD;
END $$;
DROP TRIGGER IF EXISTS release_lock ON playbook.grading_copylock;
CREATE TRIGGER release_lock INSTEAD OF DELETE ON playbook.grading_copylock
    FOR EACH ROW EXECUTE FUNCTION playbook.release_lock();
"""


def install(connection: psycopg.Connection[Any], settings: DatabaseSettings) -> None:
    """Create or renew the tables and views, the role and its rights."""
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone() is not None
    statement = "ALTER ROLE {} LOGIN PASSWORD {}" if exists else "CREATE ROLE {} LOGIN PASSWORD {}"
    role = sql.Identifier(ROLE)
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '30s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
        connection.execute(sql.SQL(statement).format(role, sql.Literal(role_password(settings, ROLE))))
        connection.execute(sql.SQL("ALTER ROLE {} SET search_path = playbook").format(role))
        connection.execute("CREATE SCHEMA IF NOT EXISTS playbook")
        _install_copies(connection)
        _install_views(connection)
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA playbook TO {}").format(role))
        for view in VIEWS:
            connection.execute(sql.SQL("GRANT SELECT ON playbook.{} TO {}").format(sql.Identifier(view), role))
        connection.execute(sql.SQL("GRANT DELETE ON playbook.grading_copylock TO {}").format(role))
    _let_see_sessions(connection)


def _install_views(connection: psycopg.Connection[Any]) -> None:
    try:
        with connection.transaction():
            connection.execute(_VIEWS)
    except psycopg.errors.InvalidTableDefinition:
        # Another release's views had other columns, and replacing can only add some at the end.
        for view in VIEWS[1:]:
            connection.execute(sql.SQL("DROP VIEW IF EXISTS playbook.{}").format(sql.Identifier(view)))
        connection.execute(_VIEWS)


def _install_copies(connection: psycopg.Connection[Any]) -> None:
    found = connection.execute("SELECT relkind FROM pg_class WHERE oid = to_regclass('playbook.exams_copy')").fetchone()
    if found is not None and found[0] == "v":
        connection.execute("DROP VIEW playbook.exams_copy")
    connection.execute(_TABLE.encode())
    if connection.execute(_HAS_TRIGGER).fetchone() is None:
        connection.execute(_TRIGGER)
    if differs(connection):
        connection.execute(_MEND.encode())


def differs(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether playbook.exams_copy shows something else than grading.copies."""
    found = connection.execute(_DIFFERS.encode()).fetchone()
    return found is not None and bool(found[0])


def _let_see_sessions(connection: psycopg.Connection[Any]) -> None:
    """Let the role see what the sessions of others do: half of the playbooks' SQL asks pg_stat_activity."""
    try:
        connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(ROLE)))
    except psycopg.errors.InsufficientPrivilege:
        log.warning("role %s sees its own sessions only: grant it pg_read_all_stats", ROLE)
