"""The four questions that the playbooks put to PostgreSQL: slow statements, who blocks whom, connections, sizes.

Asked by `korrigo doctor db` and by the causes of scenario high-latency. Long transactions come with the sizes, because
they keep the server from tidying up. Columns of pg_stat_statements are chosen by its version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from korrigo.doctor.causes import Blind
from korrigo.doctor.patient import APPLICATION, Patient, Row

SLOW_SECONDS = 2
LONG_TRANSACTION_SECONDS = 30
_QUERY = 200
# Ours looks, and these may take their time.
_QUIET = "a.application_name NOT LIKE 'korrigo:doctor%%' AND a.application_name NOT LIKE 'pg_dump%%'"
_CLIENTS = f"coalesce(a.backend_type, 'client backend') = 'client backend' AND {_QUIET}"

_RUNNING = f"""
SELECT a.pid, coalesce(a.usename, '') AS "user", a.application_name AS application, a.state,
       coalesce(a.wait_event_type, '') AS waits_for,
       extract(epoch FROM clock_timestamp() - a.query_start)::float8 AS seconds,
       left(regexp_replace(a.query, '\\s+', ' ', 'g'), {_QUERY}) AS query
FROM pg_stat_activity a WHERE {_CLIENTS} AND a.state = 'active'
    AND a.query_start < clock_timestamp() - make_interval(secs => %(after)s)
ORDER BY a.query_start LIMIT 20
"""
_BLOCKED = f"""
SELECT a.pid, coalesce(a.usename, '') AS "user", pg_blocking_pids(a.pid) AS blocked_by,
       extract(epoch FROM clock_timestamp() - a.query_start)::float8 AS seconds,
       left(regexp_replace(a.query, '\\s+', ' ', 'g'), {_QUERY}) AS query,
       b.pid AS blocker, coalesce(b.usename, '') AS blocker_user, b.application_name AS blocker_application,
       b.state AS blocker_state, extract(epoch FROM clock_timestamp() - b.xact_start)::float8 AS blocker_seconds,
       left(regexp_replace(b.query, '\\s+', ' ', 'g'), {_QUERY}) AS blocker_query
FROM pg_stat_activity a LEFT JOIN pg_stat_activity b ON b.pid = (pg_blocking_pids(a.pid))[1]
WHERE {_CLIENTS} AND cardinality(pg_blocking_pids(a.pid)) > 0 ORDER BY a.query_start LIMIT 50
"""
_CONNECTIONS = """
SELECT coalesce(usename, '') AS "user", application_name AS application, coalesce(state, 'unknown') AS state,
       count(*) AS connections
FROM pg_stat_activity WHERE datname IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
"""
_TRANSACTIONS = f"""
SELECT a.pid, coalesce(a.usename, '') AS "user", a.application_name AS application, coalesce(a.state, '') AS state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds,
       (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.locktype IN ('relation', 'tuple')
           AND l.mode NOT IN ('AccessShareLock')) AS locks,
       left(regexp_replace(a.query, '\\s+', ' ', 'g'), {_QUERY}) AS query
FROM pg_stat_activity a WHERE {_CLIENTS} AND a.xact_start < clock_timestamp() - make_interval(secs => %(after)s)
ORDER BY a.xact_start LIMIT 20
"""
_SIZES = """
SELECT n.nspname || '.' || c.relname AS name, pg_total_relation_size(c.oid)::bigint AS bytes,
       coalesce(s.n_live_tup, 0)::bigint AS live_rows, coalesce(s.n_dead_tup, 0)::bigint AS dead_rows
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.relkind = 'r' AND n.nspname IN ('ingest', 'grading', 'render', 'audit', 'pgmq') ORDER BY 2 DESC LIMIT 12
"""
_DATABASE = """
SELECT pg_database_size(current_database())::bigint AS bytes, current_setting('max_connections')::int AS allowed,
       d.xact_commit AS commits, d.xact_rollback AS rollbacks, d.deadlocks
FROM pg_stat_database d WHERE d.datname = current_database()
"""


@dataclass(frozen=True, slots=True)
class Use:
    """How many connections there are, and may be."""

    busy: int
    total: int
    allowed: int


def running(patient: Patient, after_seconds: float = SLOW_SECONDS) -> list[Row]:
    """List the statements that have run for longer, those that wait for a lock too."""
    return patient.rows(_RUNNING, {"after": after_seconds})


def blocked(patient: Patient) -> list[Row]:
    """List the sessions that wait for another, each with the one that it waits for."""
    return patient.rows(_BLOCKED, {})


def transactions(patient: Patient, after_seconds: float = LONG_TRANSACTION_SECONDS) -> list[Row]:
    """List the transactions that are open for longer, with the locks that they hold."""
    return patient.rows(_TRANSACTIONS, {"after": after_seconds})


def use(patient: Patient) -> Use:
    """Count the connections; busy = all but idle."""
    rows = [row for row in patient.rows(_CONNECTIONS) if row["application"] != APPLICATION]
    busy = sum(row["connections"] for row in rows if row["state"] not in ("idle", "unknown"))
    allowed = patient.row("SELECT current_setting('max_connections')::int AS allowed")["allowed"]
    return Use(busy, sum(row["connections"] for row in rows), allowed)


def statements(patient: Patient) -> list[Row] | None:
    """List the slowest statements on average; None where pg_stat_statements is not installed."""
    found = patient.rows("SELECT extversion, extnamespace::regnamespace::text AS schema FROM pg_extension"
                         " WHERE extname = 'pg_stat_statements'")  # fmt: skip
    if not found:
        return None
    # Renamed in version 1.8, which came with PostgreSQL 13.
    version = tuple(int(part) for part in found[0]["extversion"].split("."))
    words = ("mean_exec_time", "total_exec_time") if version >= (1, 8) else ("mean_time", "total_time")
    sql = (
        f"SELECT left(query, {_QUERY}) AS query, calls, {words[0]} AS mean_ms, {words[1]} AS total_ms"
        f" FROM {found[0]['schema']}.pg_stat_statements ORDER BY {words[0]} DESC LIMIT 10"
    )
    try:
        return patient.rows(sql)
    except Blind:  # installed, but not loaded by the server
        return None


def report(patient: Patient) -> dict[str, Any]:
    """Answer all four; raises Blind when the database does not answer."""
    database = patient.row(_DATABASE)
    return {
        "slow": {"running": running(patient), "statements": statements(patient)},
        "blocked": blocked(patient),
        "connections": {
            "allowed": database["allowed"],
            "busy": use(patient).busy,
            "by_state": [row for row in patient.rows(_CONNECTIONS) if row["application"] != APPLICATION],
        },
        "sizes": {
            "database_bytes": database["bytes"],
            "tables": patient.rows(_SIZES),
            "long_transactions": transactions(patient),
            "commits": database["commits"],
            "rollbacks": database["rollbacks"],
            "deadlocks": database["deadlocks"],
        },
    }


def lines(found: dict[str, Any]) -> Sequence[str]:
    """Write the report for a terminal."""
    slow, sizes = found["slow"], found["sizes"]
    shown = [f"slow: {len(slow['running'])} statements run for more than {SLOW_SECONDS} s"]
    shown += [f"  {row['seconds']:8.1f} s  pid {row['pid']}  {row['user']}: {row['query']}" for row in slow["running"]]
    if slow["statements"] is None:
        shown.append("  pg_stat_statements is not installed: no averages")
    for row in slow["statements"] or ():
        shown.append(f"  {row['mean_ms']:8.1f} ms on average, {row['calls']} calls: {row['query']}")
    shown.append(f"blocked: {len(found['blocked'])} sessions wait for another")
    shown += [
        f"  {row['seconds']:8.1f} s  pid {row['pid']} waits for pid {row['blocker']} ({row['blocker_user']},"
        f" {row['blocker_state']}): {row['query']}"
        for row in found["blocked"]
    ]
    connections = found["connections"]
    shown.append(f"connections: {connections['busy']} busy of {connections['allowed']} allowed")
    shown += [
        f"  {row['connections']:5}  {row['state']:20} {row['user']} {row['application']}"
        for row in connections["by_state"]
    ]
    shown.append(
        f"sizes: {sizes['database_bytes'] >> 20} MB; {sizes['commits']} commits, {sizes['rollbacks']} rollbacks,"
        f" {sizes['deadlocks']} deadlocks"
    )
    shown += [
        f"  {row['bytes'] >> 10:8} kB  {row['name']}: {row['live_rows']} rows, {row['dead_rows']} dead"
        for row in sizes["tables"]
    ]
    shown.append(f"long transactions: {len(sizes['long_transactions'])} of more than {LONG_TRANSACTION_SECONDS} s")
    shown += [
        f"  {row['seconds']:8.1f} s  pid {row['pid']}  {row['user']} {row['state']}: {row['query']}"
        for row in sizes["long_transactions"]
    ]
    return shown
