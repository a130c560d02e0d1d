"""The names of the scenarios, apart from their causes so that a cause may name all of them."""

from __future__ import annotations

from collections.abc import Mapping

# name -> (the alerts' word for it, what it is about); the order is that of `korrigo doctor scenario all`.
SCENARIOS: Mapping[str, tuple[str, str]] = {
    "import-stuck": ("import", "copies stay STAGING"),
    "finalization-failing": ("finalization", "final PDFs are not made"),
    "lock-conflicts": ("locks", "locks hold people up"),
    "high-latency": ("latency", "answers are slow"),
    "missing-audit-events": ("audit", "the audit trail lacks acts"),
    "database": ("database", "PostgreSQL"),
    "broker": ("broker", "the broker and what travels by it"),
    "storage": ("storage", "disks, the object store, backups"),
    "monitoring": ("monitoring", "metrics, alerts, the sweeper"),
    "web": ("web", "what a browser meets"),
}
