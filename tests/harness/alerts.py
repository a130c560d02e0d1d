"""The table of alerts as operations.md 2 has it, and what the rules files hold: data for tests of rules and runbooks.

The table is written here a second time on purpose: rules that drift from it fail, whoever generated the documents.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts" / "korrigo" / "files" / "rules"
UNIT_TESTS = ROOT / "tests" / "promtool"
ESCALATION = ROOT / "charts" / "korrigo" / "files" / "escalation.yaml"
BASE_URL = "https://korrigo.example.org"
GRAFANA_URL = "https://grafana.example.org"

# What `korrigo doctor scenario NAME` takes.
SCENARIOS = frozenset(
    "import finalization locks latency audit database broker storage monitoring web".split()
)  # fmt: skip
TEAMS = frozenset({"devops", "backend", "database", "security"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; an alert with two severities has two."""

    alert: str
    lasting: str
    severity: str
    priority: str
    runbook: str


TABLE = tuple(
    Row(*line.split())
    for line in """
    ImportStuck                   5m   warning   P2  import-stuck
    ImportStuck                   5m   critical  P1  import-stuck
    OCRErrorsHigh                 5m   warning   P2  ocr-errors
    FinalizationFailureHigh       5m   warning   P2  finalization-failing
    FinalizationStuck             5m   warning   P2  finalization-failing
    FinalizationRetriesExhausted  0s   critical  P1  retries-exhausted
    LockConflictsHigh             5m   warning   P3  lock-conflicts
    LockAlreadyLockedHigh         10m  info      P3  lock-conflicts
    ExpiredLocksNotReleased       10m  info      P3  expired-locks
    HighLatency                   5m   warning   P2  high-latency
    LatencyDegraded               15m  info      P3  high-latency
    ErrorRateHigh                 5m   critical  P1  error-rate
    ErrorBudgetBurnFast           2m   critical  P1  error-rate
    ErrorBudgetBurnSlow           1h   warning   P3  error-rate
    AuditEventsMissing            15m  warning   P3  missing-audit-events
    AuditChainBroken              0s   critical  P0  audit-chain
    WorkersDown                   2m   critical  P0  workers-down
    QueueBacklog                  10m  info      P3  queue-backlog
    QueueBacklog                  10m  warning   P2  queue-backlog
    BrokerDown                    1m   critical  P0  broker-down
    DatabaseDown                  1m   critical  P0  database-down
    DatabaseConnectionsHigh       5m   warning   P2  database-connections
    DatabaseBlockedQueries        5m   warning   P2  database-blocked
    DiskSpaceLow                  10m  warning   P2  disk-space
    DiskSpaceCritical             2m   critical  P1  disk-space
    TempUploadsLarge              30m  info      P3  disk-space
    ObjectStoreErrorsHigh         5m   warning   P2  object-store
    LoginFailuresHigh             5m   warning   P3  login-failures
    InterventionFailed            0s   warning   P2  intervention-failed
    SweeperStale                  2m   critical  P1  sweeper-stale
    BackupTooOld                  5m   warning   P2  backup-too-old
    DatabaseSlowQueries           5m   warning   P2  high-latency
    MemoryPressure                5m   warning   P2  high-latency
    TargetDown                    2m   critical  P1  target-down
    MetricsAbsent                 10m  warning   P2  metrics-absent
    Watchdog                      0s   none      P3  watchdog
    """.strip().splitlines()
)

RUNBOOKS = tuple(sorted({row.runbook for row in TABLE}))

# operations.md 1: all that a rule may read, with the labels that may be matched or kept (job and instance aside).
METRICS = {
    "grading_import_duration_seconds": {"status", "pages_bucket"},
    "grading_finalize_duration_seconds": {"status", "retry_attempt"},
    "grading_ocr_errors_total": {"error_type"},
    "grading_lock_conflicts_total": {"conflict_type"},
    "grading_copies_by_status": {"status"},
    "http_request_duration_seconds": {"method", "path", "status"},
    "http_requests_total": {"method", "path", "status"},
    "grading_stuck_copies": {"stage", "reason"},
    "grading_oldest_copy_age_seconds": {"status"},
    "grading_copies_retries_exhausted": set(),
    "grading_locks": {"state"},
    "grading_audit_missing_events": {"action"},
    "grading_audit_chain_valid": set(),
    "grading_audit_outbox_oldest_seconds": set(),
    "broker_queue_messages": {"queue", "state"},
    "broker_queue_oldest_seconds": {"queue"},
    "grading_jobs": {"kind", "state"},
    "grading_workers_ready": {"queue"},
    "grading_db_up": set(),
    "grading_broker_up": set(),
    "grading_db_connections": {"state"},
    "grading_db_connections_max": set(),
    "grading_db_blocked_queries": set(),
    "grading_storage_available_bytes": {"volume"},
    "grading_storage_size_bytes": {"volume"},
    "grading_temp_upload_bytes": set(),
    "grading_sweep_last_success_timestamp_seconds": set(),
    "grading_backup_last_success_timestamp_seconds": set(),
    "grading_operator_actions_total": {"action"},
    "grading_interventions_total": {"result"},
    "grading_object_store_errors_total": {"operation"},
    "grading_login_failures_total": set(),
    "grading_db_oldest_query_seconds": set(),
    "grading_memory_available_bytes": set(),
    "up": set(),
}  # type: dict[str, set[str]]


@functools.cache
def load(path: Path) -> Any:
    """Return what a YAML file holds; read once, as hundreds of tests ask for the same rules: change a copy only."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def rule_files() -> list[Path]:
    """Return the rules files by name."""
    return sorted(RULES.glob("*.yaml"))


def rules(kind: str) -> list[dict[str, Any]]:
    """Return the rules that have the key `kind` (alert or record), in the order of their files."""
    return [
        rule for path in rule_files() for group in load(path)["groups"] for rule in group["rules"] if kind in rule
    ]  # fmt: skip


def selectors(expression: str) -> set[tuple[str, frozenset[str]]]:
    """Return the (metric, matched labels) that a PromQL expression selects; recorded names included."""
    bare = re.sub(r"#[^\n]*", "", expression)
    bare = re.sub(r"\b(?:by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    found: set[tuple[str, frozenset[str]]] = set()
    for match in re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\}|\()?", re.sub(r'"[^"]*"', '""', bare)):
        name, tail = match.group(1), match.group(2) or ""
        is_word = name in {"and", "or", "unless", "offset"} or re.fullmatch(r"[smhdwy]", name)
        if tail != "(" and not is_word:
            found.add((name, frozenset(re.findall(r"(\w+)\s*[=!]", tail))))
    return found
