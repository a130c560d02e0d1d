"""Metrics of grading: the playbooks' names, every label value there from the start (domain.md 1.16)."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

CONFLICT_TYPES = (
    "already_locked",
    "missing",
    "expired",
    "owner_mismatch",
    "token_mismatch",
    "already_graded",
    "db_contention",
)
STATUSES = ("success", "failed")
RETRY_ATTEMPTS = ("1", "2", "3+")
# Work up to 300 s, so that a p95 above the 120 s of a range can be told (operations.md 1).
WORK_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

grading_lock_conflicts_total = Counter(
    "grading_lock_conflicts", "Refusals because of a lock, by kind.", ["conflict_type"]
)
grading_finalize_duration_seconds = Histogram(
    "grading_finalize_duration_seconds",
    "Time from the request to finalise to its end, by outcome and attempt.",
    ["status", "retry_attempt"],
    buckets=WORK_BUCKETS,
)
grading_login_failures_total = Counter("grading_login_failures", "Logins that were refused.")

for _kind in CONFLICT_TYPES:
    grading_lock_conflicts_total.labels(_kind)
for _status in STATUSES:
    for _attempt in RETRY_ATTEMPTS:
        grading_finalize_duration_seconds.labels(_status, _attempt)


def retry_attempt(attempt: int) -> str:
    """Return the label value of an attempt, from 1."""
    return str(attempt) if attempt < 3 else "3+"
