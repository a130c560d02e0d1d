"""What is stuck: decided here and nowhere else, for the metric, the command line, the API and the operator alike.

Stuck means: not healed `KORRIGO_JOBS__STUCK_SECONDS` after it began. The sweeper heals everything that it can in less
(reliability.md 1), so what is listed here needs a person or a working machine. Work that waits its turn while its
room gets on is not stuck, however long it waits; work that is being retried is not stuck either.

Every room lists its own (`Room.stuck`): the one statement over job rows is here, what a job stands for (how many
copies, of which stage) is the room's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from korrigo_kit.settings import JobSettings

if TYPE_CHECKING:
    from korrigo_kit.db import Tx

STAGES = ("import", "finalize", "lock")
LOST_TASK = "lost_task"
WORKER_DEAD = "worker_dead"
NO_PROGRESS = "no_progress"
RETRIES_EXHAUSTED = "retries_exhausted"
LOCK_EXPIRED = "lock_expired"
REASONS = (LOST_TASK, WORKER_DEAD, NO_PROGRESS, RETRIES_EXHAUSTED, LOCK_EXPIRED)

# A worker notes itself every 5 s (kit.work); three silences are its end.
WORKER_SILENCE_SECONDS = 15
WORKER_PREFIX = "worker:"


@dataclass(frozen=True, slots=True)
class Stuck:
    """Something that is stuck: what, why, since when, and how many copies wait for it.

    `tried` and `tried_at` are added by `interventions.with_tries`: automatic acts on it in the last day.
    """

    room: str
    stage: str
    reason: str
    subject_type: str
    subject_id: str
    since: datetime
    copies: int = 1
    job_id: str = ""
    attempts: int = 0
    lost_leases: int = 0
    error_reason: str = ""
    exam_id: str = ""
    anonymous_id: str = ""
    tried: int = 0
    tried_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StuckJob:
    """A job row that is stuck."""

    id: str
    subject_id: str
    reason: str
    since: datetime
    attempts: int
    lost_leases: int
    error_reason: str


# One look at the table. A job that is due is lost when its room does nothing although a worker is idle (workers may
# be busy for other rooms), or when later work overtook it by that much; else it waits its turn. Postponed five times
# (2, 4, 8, 16, 30 s) is a minute without progress: what it needs is away.
_SQL = """
WITH room AS (
    SELECT count(*) FILTER (WHERE state = 'DONE'
               AND finished_at > clock_timestamp() - make_interval(secs => %(after)s)) AS done_lately,
           max(created_at) FILTER (WHERE started_at IS NOT NULL) AS started_until
    FROM jobs WHERE kind = %(kind)s
), workers AS (
    SELECT count(*) AS alive, count(*) FILTER (WHERE coalesce((facts->>'busy')::int < (facts->>'pool')::int, true))
               AS idle
    FROM heartbeats WHERE name LIKE %(worker)s
        AND beat_at > clock_timestamp() - make_interval(secs => %(silence)s)
), judged AS (
    SELECT j.*, CASE
        WHEN state = 'QUARANTINED' THEN 'retries_exhausted'
        WHEN state = 'RUNNING' AND heartbeat_at < clock_timestamp() - make_interval(secs => %(after)s)
            THEN 'worker_dead'
        WHEN state = 'RUNNING' AND attempts = 0 AND lost_leases = 0 AND postponements = 0
            AND started_at < clock_timestamp() - make_interval(secs => %(limit)s + %(after)s) THEN 'no_progress'
        WHEN state = 'READY' AND postponements >= 5 AND error_reason IS NOT NULL THEN 'no_progress'
        WHEN state = 'READY' AND not_before < clock_timestamp() - make_interval(secs => %(after)s) THEN CASE
            WHEN alive = 0 THEN 'worker_dead'
            WHEN idle > 0 AND done_lately = 0 OR started_at IS NULL
                AND started_until > created_at + make_interval(secs => %(after)s) THEN 'lost_task' END
        END AS reason
    FROM jobs j, room, workers WHERE kind = %(kind)s AND state IN ('READY', 'RUNNING', 'QUARANTINED')
)
SELECT id::text AS id, subject_id, reason, attempts, lost_leases, coalesce(error_reason, '') AS error_reason,
       CASE WHEN state = 'RUNNING' THEN heartbeat_at WHEN state = 'QUARANTINED'
            THEN coalesce(finished_at, heartbeat_at, created_at)
            WHEN postponements >= 5 THEN coalesce(started_at, created_at) ELSE not_before END AS since
FROM judged WHERE reason IS NOT NULL ORDER BY since
"""


def stuck_jobs(tx: Tx, kind: str, settings: JobSettings) -> list[StuckJob]:
    """List the jobs of a kind that are stuck, oldest first."""
    rows = tx.all(
        _SQL,
        {
            "kind": kind,
            "after": settings.stuck_seconds,
            "limit": settings.limit_seconds,
            "silence": WORKER_SILENCE_SECONDS,
            "worker": f"{WORKER_PREFIX}%",
        },
    )
    return [StuckJob(**row) for row in rows]


def has_worker(tx: Tx) -> bool:
    """Tell whether a worker of this room lives."""
    row = tx.row(
        "SELECT EXISTS (SELECT 1 FROM heartbeats WHERE name LIKE %s"
        " AND beat_at > clock_timestamp() - make_interval(secs => %s)) AS found",
        (f"{WORKER_PREFIX}%", WORKER_SILENCE_SECONDS),
    )
    return bool(row["found"])


def count(found: Iterable[Stuck]) -> dict[tuple[str, ...], float]:
    """Count stuck copies by stage and reason, as the metric has them."""
    numbers: Counter[tuple[str, ...]] = Counter()
    for item in found:
        numbers[item.stage, item.reason] += item.copies
    return {labels: float(number) for labels, number in numbers.items()}


def oldest_first(found: Iterable[Stuck]) -> Sequence[Stuck]:
    """Order for people: what has been stuck longest comes first."""
    return sorted(found, key=lambda item: (item.since, item.subject_id))
