"""The playbooks' SQL, to the letter (comments and line ends aside), for the test that runs it on the playbook tables.

`RUN` = on the five tables, pg_locks or pg_stat_activity: it must run unchanged (decisions.md, "Playbook views").
`REPLACED` = what PostgreSQL or the product now does otherwise, each with its equivalent in docs/reference/sql.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SEEDS = Path(__file__).resolve().parents[2].parent / "shared" / "seeds"

RUN = {
    "audit trail": """SELECT action, timestamp, metadata FROM grading_gradingevent
        WHERE copy_id = '<copy_uuid>' ORDER BY timestamp;""",
    "audit trail with actors": """SELECT action, actor_id, timestamp, metadata FROM grading_gradingevent
        WHERE copy_id = '<copy_uuid>' ORDER BY timestamp;""",
    "actions": """SELECT action, timestamp FROM grading_gradingevent
        WHERE copy_id = '<copy_uuid>' ORDER BY timestamp;""",
    "finalisations": """SELECT action, timestamp, metadata FROM grading_gradingevent
        WHERE copy_id = '<copy_uuid>' AND action = 'FINALIZE' ORDER BY timestamp DESC LIMIT 5;""",
    "lock events": """SELECT action, actor_id, timestamp FROM grading_gradingevent
        WHERE copy_id = '<copy_uuid>' AND action IN ('LOCK', 'UNLOCK') ORDER BY timestamp DESC LIMIT 10;""",
    "copy status": """SELECT id, status, grading_retries, grading_error_message FROM exams_copy
        WHERE id = '<copy_uuid>';""",
    "copy error": "SELECT grading_error_message FROM exams_copy WHERE id = '<copy_uuid>';",
    "copy and its history": """SELECT c.id, c.anonymous_id, c.status, c.grading_retries, COUNT(ge.id) AS event_count
        FROM exams_copy c LEFT JOIN grading_gradingevent ge ON c.id = ge.copy_id
        WHERE c.id = '<copy_uuid>' GROUP BY c.id;""",
    "stuck copies": """SELECT id, anonymous_id, created_at FROM exams_copy
        WHERE status = 'STAGING' AND created_at < NOW() - INTERVAL '1 hour';""",
    "number of stuck copies": """SELECT COUNT(*) FROM exams_copy
        WHERE status = 'STAGING' AND created_at < NOW() - INTERVAL '1 hour';""",
    "copies by status": "SELECT status, COUNT(*) FROM exams_copy GROUP BY status;",
    "plan of ready copies": "EXPLAIN ANALYZE SELECT * FROM exams_copy WHERE status = 'READY';",
    "plan of annotations": """EXPLAIN ANALYZE SELECT * FROM exams_copy
        JOIN grading_annotation ON exams_copy.id = grading_annotation.copy_id
        WHERE exams_copy.exam_id = '<exam_uuid>';""",
    "annotations": "SELECT COUNT(*) FROM grading_annotation WHERE copy_id = '<copy_uuid>';",
    "lock status": """SELECT cl.copy_id, cl.owner_id, u.username AS owner_username, cl.locked_at, cl.expires_at,
        NOW() AS current_time, (cl.expires_at < NOW()) AS is_expired
        FROM grading_copylock cl JOIN auth_user u ON cl.owner_id = u.id WHERE cl.copy_id = '<copy_uuid>';""",
    "lock owner": """SELECT u.username, u.email, cl.expires_at
        FROM grading_copylock cl JOIN auth_user u ON cl.owner_id = u.id WHERE cl.copy_id = '<copy_uuid>';""",
    "expired locks": "SELECT copy_id, owner_id, expires_at FROM grading_copylock WHERE expires_at < NOW();",
    "release of an expired lock": "DELETE FROM grading_copylock WHERE copy_id = '<copy_uuid>' AND expires_at < NOW();",
    "release of a lock": "DELETE FROM grading_copylock WHERE copy_id = '<copy_uuid>';",
    "sessions": "SELECT count(*) FROM pg_stat_activity;",
    "busy sessions": "SELECT count(*) FROM pg_stat_activity WHERE state != 'idle';",
    "busy sessions by duration": """SELECT pid, usename, state, query_start, now() - query_start AS duration,
        left(query, 100) AS query FROM pg_stat_activity WHERE state != 'idle' ORDER BY duration DESC;""",
    "running queries": """SELECT pid, now() - pg_stat_activity.query_start AS duration, query FROM pg_stat_activity
        WHERE state = 'active' AND query NOT LIKE '%pg_stat_activity%' ORDER BY duration DESC;""",
    "waiting locks": "SELECT * FROM pg_locks WHERE NOT granted;",
    "locks by table": """SELECT locktype, relation::regclass AS table_name, mode, COUNT(*) AS lock_count
        FROM pg_locks GROUP BY locktype, relation, mode ORDER BY lock_count DESC LIMIT 20;""",
    "who blocks whom": """SELECT blocked_locks.pid AS blocked_pid, blocked_activity.usename AS blocked_user,
        blocking_locks.pid AS blocking_pid, blocking_activity.usename AS blocking_user,
        blocked_activity.query AS blocked_statement
        FROM pg_catalog.pg_locks blocked_locks
        JOIN pg_catalog.pg_stat_activity blocked_activity ON blocked_activity.pid = blocked_locks.pid
        JOIN pg_catalog.pg_locks blocking_locks ON blocking_locks.locktype = blocked_locks.locktype
        JOIN pg_catalog.pg_stat_activity blocking_activity ON blocking_activity.pid = blocking_locks.pid
        WHERE NOT blocked_locks.granted;""",
}

REPLACED = (
    """SELECT query, mean_exec_time, calls FROM pg_stat_statements WHERE mean_exec_time > 1000
        ORDER BY mean_exec_time DESC LIMIT 10;""",
    """SELECT query, calls, mean_exec_time, max_exec_time FROM pg_stat_statements
        ORDER BY mean_exec_time DESC LIMIT 10;""",
    """SELECT query, calls, total_time, mean_time FROM pg_stat_statements WHERE mean_time > 1000
        ORDER BY total_time DESC LIMIT 10;""",
    """SELECT query, calls, mean_exec_time FROM pg_stat_statements WHERE query LIKE '%ROLLBACK%'
        ORDER BY calls DESC LIMIT 10;""",
    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state != 'idle'
        AND query_start < now() - interval '5 minutes';""",
    "ALTER SYSTEM SET log_min_duration_statement = 1000;",
    "SELECT pg_reload_conf();",
    "SELECT pg_size_pretty(pg_database_size('korrigo'));",
    """SELECT schemaname,tablename,pg_size_pretty(pg_total_relation_size(schemaname||'.'||tablename)) AS size
        FROM pg_tables WHERE schemaname='public'
        ORDER BY pg_total_relation_size(schemaname||'.'||tablename) DESC;""",
    "CREATE DATABASE korrigo;",
    "VACUUM ANALYZE;",
    "REINDEX DATABASE korrigo;",
    "ALTER DATABASE korrigo SET default_transaction_read_only = on;",
)

_FENCE = re.compile(r"^( *)```\w*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_STATEMENT = re.compile(
    r"(?:EXPLAIN ANALYZE )?\b(?:SELECT|DELETE FROM|ALTER|CREATE|VACUUM|REINDEX|UPDATE|INSERT)\b[^;\"]*;"
    r"|SELECT [^;\"]*'<copy_uuid>'[^;\"]*;"
)


def flat(statement: str) -> str:
    """Return a statement on one line."""
    return " ".join(statement.split())


def found_in_seeds() -> Iterator[str]:
    """Yield every SQL statement of the code blocks of the seeds, on one line, comments left out."""
    for page in sorted(SEEDS.glob("*.md")):
        for _, block in _FENCE.findall(page.read_text(encoding="utf-8")):
            code = "\n".join(re.sub(r"(^|\s)(--|#)\s.*|^=#", "", line) for line in block.splitlines())
            yield from (flat(match) for match in _STATEMENT.findall(code))
