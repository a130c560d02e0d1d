"""The playbooks' five tables as read-only views, for people who work with SQL at 03:00 (domain.md 1.1).

Schema `playbook`, role `korrigo_support` with that search path: SELECT on the five, and DELETE on
`grading_copylock`, which releases the lock safely; the sweeper then tells UNLOCK and makes the copy READY.
Times exist under both names that the playbooks use. Installed by `korrigo migrate` after the rooms' schemas.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from korrigo_kit.credentials import role_password
from korrigo_kit.settings import DatabaseSettings

ROLE = "korrigo_support"
VIEWS = ("exams_copy", "grading_gradingevent", "grading_annotation", "grading_copylock", "auth_user")

SQL = """
CREATE SCHEMA IF NOT EXISTS playbook;
CREATE OR REPLACE VIEW playbook.exams_copy AS
SELECT id, exam_id, anonymous_id, status, revision, version, assigned_corrector_id, dispatch_run_id, assigned_at,
       created_by, created_at, updated_at, validated_at, locked_at, locked_by, graded_at, grading_retries,
       coalesce(grading_error_message, '') AS grading_error_message, final_score, deleted_at IS NOT NULL AS deleted
FROM grading.copies;
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
FROM grading.copy_locks;
CREATE OR REPLACE VIEW playbook.auth_user AS
SELECT id, username, email, is_active, last_login FROM grading.users;
CREATE OR REPLACE FUNCTION playbook.release_lock() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = grading, pg_temp AS $$
BEGIN
    UPDATE copies SET fence = fence + 1 WHERE id = OLD.copy_id;
    DELETE FROM copy_locks WHERE copy_id = OLD.copy_id;
    RETURN OLD;
END $$;
DROP TRIGGER IF EXISTS release_lock ON playbook.grading_copylock;
CREATE TRIGGER release_lock INSTEAD OF DELETE ON playbook.grading_copylock
    FOR EACH ROW EXECUTE FUNCTION playbook.release_lock();
"""


def install(connection: psycopg.Connection[Any], settings: DatabaseSettings) -> None:
    """Create or renew the views, the role and its rights."""
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone() is not None
    statement = "ALTER ROLE {} LOGIN PASSWORD {}" if exists else "CREATE ROLE {} LOGIN PASSWORD {}"
    role = sql.Identifier(ROLE)
    with connection.transaction():
        connection.execute(sql.SQL(statement).format(role, sql.Literal(role_password(settings, ROLE))))
        connection.execute(sql.SQL("ALTER ROLE {} SET search_path = playbook").format(role))
        connection.execute(SQL)
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA playbook TO {}").format(role))
        for view in VIEWS:
            connection.execute(sql.SQL("GRANT SELECT ON playbook.{} TO {}").format(sql.Identifier(view), role))
        connection.execute(sql.SQL("GRANT DELETE ON playbook.grading_copylock TO {}").format(role))
