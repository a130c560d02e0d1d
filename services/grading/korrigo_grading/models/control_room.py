"""What the control room reads besides the state of copies: the pace of exams and final PDFs, alerts, the server.

Asked by `flows.overview`; each statement is one look, so that a page may ask every few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from korrigo_kit.db import Tx

MOST_EXAMS = 50
MOST_ALERTS = 50
# Heartbeat that a backup writes once it was verified; before the first, the age counts from the installation.
_BACKUP = "backup"

_EXAMS = """
SELECT e.id::text AS exam_id, e.name, count(*) AS copies, count(*) FILTER (WHERE c.status = 'GRADED') AS graded,
    count(*) FILTER (WHERE c.status = 'GRADED' AND c.graded_at > clock_timestamp() - interval '1 hour') AS last_hour
FROM exams e JOIN copies c ON c.exam_id = e.id AND c.deleted_at IS NULL
WHERE e.deleted_at IS NULL GROUP BY e.id HAVING count(*) FILTER (WHERE c.status <> 'GRADED') > 0
ORDER BY e.created_at DESC, e.id DESC LIMIT %s
"""
_FINALISATIONS = """
SELECT count(*) FILTER (WHERE state = 'SUCCEEDED') AS made, count(*) FILTER (WHERE state = 'FAILED') AS failed,
    coalesce(percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms)
        FILTER (WHERE state = 'SUCCEEDED'), ARRAY[NULL, NULL, NULL]::float8[]) AS percentiles
FROM finalisations WHERE finished_at > clock_timestamp() - interval '1 hour'
"""
_ALERTS = """
SELECT a.labels ->> 'alertname' AS name, coalesce(a.labels ->> 'priority', '') AS priority,
    coalesce(a.labels ->> 'severity', '') AS severity, coalesce(a.labels ->> 'scenario', '') AS scenario,
    min(a.started_at) AS since, count(*) AS firing, coalesce(max(a.annotations ->> 'summary'), '') AS summary,
    coalesce(max(a.annotations ->> 'first_response'), '') AS first_response,
    coalesce(max(a.annotations ->> 'runbook_url'), '') AS runbook_url,
    coalesce(max(a.annotations ->> 'dashboard_url'), '') AS dashboard_url
FROM alerts a JOIN alert_groups g ON g.id = a.group_id
WHERE g.ended_at IS NULL AND a.ended_at IS NULL AND a.labels ? 'alertname'
GROUP BY 1, 2, 3, 4 ORDER BY 2, since LIMIT %s
"""
# pg_stat_activity hides the state of other roles' sessions from a role without pg_read_all_stats: those count as idle.
_SERVER = """
SELECT count(*) AS connections, count(*) FILTER (WHERE state <> 'idle') AS busy,
    current_setting('max_connections')::int AS allowed,
    (SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted) AS blocked,
    coalesce(max(extract(epoch FROM clock_timestamp() - query_start)) FILTER (WHERE state = 'active'
        AND pid <> pg_backend_pid() AND usename LIKE 'korrigo%%'), 0)::float8 AS oldest_query
FROM pg_stat_activity WHERE backend_type = 'client backend'
"""
_BACKUP_AGE = """
SELECT extract(epoch FROM clock_timestamp() - coalesce((SELECT beat_at FROM heartbeats WHERE name = %s),
    (SELECT min(created_at) FROM users WHERE is_system)))::float8 AS age
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """An exam with copies that are not graded; `last_hour` of them were graded in the last hour."""

    exam_id: str
    name: str
    copies: int
    graded: int
    last_hour: int

    @property
    def remaining_seconds(self) -> float | None:
        """Tell when the last copy will be graded at the pace of the last hour; None while nobody finalises."""
        return (self.copies - self.graded) / self.last_hour * 3600 if self.last_hour else None


@dataclass(frozen=True, slots=True)
class Pace:
    """Final PDFs of the last hour; percentiles of the time that the made ones took, None when there is none."""

    made: int
    failed: int
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fires, as Alertmanager told it; `firing` of its kind do."""

    name: str
    priority: str
    severity: str
    scenario: str
    since: datetime
    firing: int
    summary: str
    first_response: str
    runbook_url: str
    dashboard_url: str


@dataclass(frozen=True, slots=True)
class Server:
    """The database server; busy are all connections but idle ones, `oldest_query` is in seconds."""

    connections: int
    busy: int
    allowed: int
    blocked: int
    oldest_query: float


def exams(tx: Tx) -> list[Progress]:
    """List the newest exams that are not done."""
    return [Progress(**row) for row in tx.all(_EXAMS, (MOST_EXAMS,))]


def pace(tx: Tx) -> Pace:
    """Measure the final PDFs of the last hour."""
    row = tx.row(_FINALISATIONS)
    p50, p95, p99 = (None if found is None else found / 1000 for found in row["percentiles"])
    return Pace(row["made"], row["failed"], p50, p95, p99)


def alerts(tx: Tx) -> list[Firing]:
    """List what fires, the most urgent first."""
    return [Firing(**row) for row in tx.all(_ALERTS, (MOST_ALERTS,))]


def server(tx: Tx) -> Server:
    """Look at the database server."""
    return Server(**tx.row(_SERVER))


def backup_age_seconds(tx: Tx) -> float:
    """Tell how old the last good backup is."""
    row: dict[str, Any] = tx.row(_BACKUP_AGE, (_BACKUP,))
    return float(row["age"])
