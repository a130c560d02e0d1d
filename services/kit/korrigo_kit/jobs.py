"""Jobs: the row is the job, the broker only rings.

    READY ──claim──> RUNNING ──finish──────────────> DONE
      ^                 │
      │                 ├─a part is away───────────> READY (postponed, counted apart, without limit)
      │                 ├─fail, will be retried────> READY (not_before in the future)
      │                 ├─fail, class not retried──> FAILED
      │                 ├─fail, 3rd attempt────────> QUARANTINED
      └──lease expired──┘ (sweeper; the 10th────────> QUARANTINED, WORKER_LOST)

A claim takes a lease and a new fence in one statement; whoever holds an older fence can no longer finish, fail or
renew. `attempts` counts failures of the work itself, `lost_leases` counts workers that died under it: they are
limited apart (decisions.md, Libraries and numbers). All times are the database's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from korrigo_kit import context
from korrigo_kit.db import Database, Tx
from korrigo_kit.errors import Bug, KorrigoError, StateConflict, Unavailable
from korrigo_kit.ids import new_id
from korrigo_kit.settings import JobSettings

log = logging.getLogger("korrigo.jobs")

# An unclaimed job is rung again after this long, doubling twice: a bell is cheap, a flood is not.
RING_AGAIN_SECONDS = 10
_RING_BATCH = 200
# Longest wait between two tries while the database or the object store is away: work goes on soon after.
POSTPONE_CAP_SECONDS = 30
_COLUMNS = (
    "id::text AS id, kind, subject_id, payload, attempts, lost_leases, fence, request_id, traceparent, created_at"
)


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job: what to do, and the fence that lets its holder write."""

    id: str
    kind: str
    subject_id: str
    payload: Mapping[str, Any]
    attempts: int
    lost_leases: int
    fence: int
    request_id: str
    traceparent: str

    @property
    def attempt(self) -> int:
        """Number of the attempt that is running, from 1."""
        return self.attempts + 1


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended."""

    reason: str
    message: str
    attempt: int
    is_final: bool
    detail: str = ""
    # For the log line of the room; None when the worker died and left none.
    error: BaseException | None = None


OnFailed = Callable[[Tx, Job, Failure], None]


@dataclass(frozen=True)
class Limits:
    """The figures that decide about retries."""

    max_attempts: int = 3
    max_lost_leases: int = 10
    backoff_seconds: float = 2
    lease_seconds: float = 30

    @classmethod
    def of(cls, settings: JobSettings) -> Limits:
        return cls(
            settings.max_attempts, settings.max_lost_leases, settings.backoff_seconds, settings.lease_seconds
        )


def enqueue(
    tx: Tx, *, kind: str, subject_id: str, payload: Mapping[str, Any], dedupe_key: str | None = None
) -> str:
    """Insert a job in the transaction of the change that asks for it; returns its id.

    With a dedupe key the job that already has it is returned instead.
    """
    row = tx.row(
        "INSERT INTO jobs (id, kind, subject_id, payload, dedupe_key, request_id, traceparent)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (dedupe_key) DO UPDATE SET dedupe_key = excluded.dedupe_key RETURNING id::text AS id",
        (
            new_id(),
            kind,
            subject_id,
            orjson.dumps(payload).decode(),
            dedupe_key,
            context.request_id(),
            context.get("traceparent") or "",
        ),
    )
    return str(row["id"])


def claim(database: Database, job_id: str, worker: str, limits: Limits) -> Job | None:
    """Take a due job with a lease and a new fence; None when somebody else has it or it is over."""
    with database.transaction() as tx:
        row = tx.one(
            "UPDATE jobs SET state = 'RUNNING', fence = fence + 1, worker = %(worker)s,"
            " lease_until = clock_timestamp() + make_interval(secs => %(lease)s),"
            " started_at = coalesce(started_at, clock_timestamp()), heartbeat_at = clock_timestamp()"
            " WHERE id = %(id)s AND state = 'READY' AND not_before <= clock_timestamp()"
            f" RETURNING {_COLUMNS}",
            {"worker": worker, "lease": limits.lease_seconds, "id": job_id},
        )
    return _job(row) if row else None


def next_due(database: Database) -> str | None:
    """Name the job that has been due longest, so that a free worker need not wait for its bell."""
    with database.transaction() as tx:
        row = tx.one(
            "SELECT id::text AS id FROM jobs WHERE state = 'READY' AND not_before <= clock_timestamp()"
            " ORDER BY not_before LIMIT 1"
        )
    return str(row["id"]) if row else None


def _job(row: Mapping[str, Any]) -> Job:
    return Job(
        id=row["id"],
        kind=row["kind"],
        subject_id=row["subject_id"],
        payload=row["payload"],
        attempts=row["attempts"],
        lost_leases=row["lost_leases"],
        fence=row["fence"],
        request_id=row["request_id"],
        traceparent=row["traceparent"],
    )


def heartbeat(database: Database, job: Job, limits: Limits) -> bool:
    """Renew the lease; False when it was lost, and then the work must not be written."""
    with database.transaction() as tx:
        return (
            tx.run(
                "UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => %s),"
                " heartbeat_at = clock_timestamp() WHERE id = %s AND fence = %s AND state = 'RUNNING'",
                (limits.lease_seconds, job.id, job.fence),
            )
            == 1
        )


def progress(tx: Tx, job: Job, facts: Mapping[str, Any]) -> None:
    """Note how far the work is; raises StateConflict (LEASE_LOST) when the job is no longer ours."""
    _ours(
        tx.run(
            "UPDATE jobs SET progress = %s WHERE id = %s AND fence = %s AND state = 'RUNNING'",
            (orjson.dumps(facts).decode(), job.id, job.fence),
        )
    )


def finish(tx: Tx, job: Job) -> None:
    """Mark the job done in the transaction of its effect; raises StateConflict (LEASE_LOST)."""
    _ours(
        tx.run(
            "UPDATE jobs SET state = 'DONE', finished_at = clock_timestamp(), lease_until = NULL,"
            " error_reason = NULL, error_message = NULL WHERE id = %s AND fence = %s AND state = 'RUNNING'",
            (job.id, job.fence),
        )
    )


def _ours(touched: int) -> None:
    if touched != 1:
        raise StateConflict("LEASE_LOST", "another worker has taken this job over")


def fail(
    database: Database, job: Job, error: BaseException, limits: Limits, on_failed: OnFailed | None
) -> Failure | None:
    """Record a failed attempt and decide what follows, in one transaction with the room's own reaction.

    The class of the error decides about a retry: KorrigoError.is_retryable, anything else counts as Bug.
    Unavailable postpones the job without counting: nothing was wrong with the work. Returns None when it was
    postponed, or when the lease had been lost, because then another worker answers for the job.
    """
    if isinstance(error, Unavailable):
        _postpone(database, job, error, limits)
        return None
    known = error if isinstance(error, KorrigoError) else Bug("BUG", type(error).__name__)
    attempt = job.attempts + 1
    is_spent = attempt >= limits.max_attempts
    is_final = is_spent or not known.is_retryable
    failure = Failure(known.reason, known.message, attempt, is_final, str(known.metadata.get("detail", "")), error)
    state = ("QUARANTINED" if known.is_retryable else "FAILED") if is_final else "READY"
    with database.transaction() as tx:
        touched = tx.run(
            "UPDATE jobs SET state = %(state)s, attempts = attempts + 1, lease_until = NULL,"
            " error_reason = %(reason)s, error_message = %(message)s, rung_at = NULL, rings = 0,"
            " not_before = clock_timestamp() + make_interval(secs => %(wait)s),"
            " finished_at = CASE WHEN %(final)s THEN clock_timestamp() END"
            " WHERE id = %(id)s AND fence = %(fence)s AND state = 'RUNNING'",
            {
                "state": state,
                "reason": known.reason,
                "message": known.message[:500],
                "wait": 0 if is_final else limits.backoff_seconds * 2 ** (attempt - 1),
                "final": is_final,
                "id": job.id,
                "fence": job.fence,
            },
        )
        if touched != 1:
            return None
        if on_failed is not None:
            on_failed(tx, job, failure)
    return failure


def _postpone(database: Database, job: Job, error: Unavailable, limits: Limits) -> None:
    with database.transaction() as tx:
        tx.run(
            "UPDATE jobs SET state = 'READY', postponements = postponements + 1, lease_until = NULL, rung_at = NULL,"
            " rings = 0, error_reason = %(reason)s, error_message = %(message)s, not_before = clock_timestamp()"
            " + make_interval(secs => least(%(cap)s, %(base)s * power(2, least(postponements, 8))))"
            " WHERE id = %(id)s AND fence = %(fence)s AND state = 'RUNNING'",
            {
                "reason": error.reason,
                "message": error.message[:500],
                "cap": POSTPONE_CAP_SECONDS,
                "base": limits.backoff_seconds,
                "id": job.id,
                "fence": job.fence,
            },
        )


@dataclass
class Swept:
    """What one sweep found."""

    requeued: int = 0
    quarantined: int = 0
    details: list[str] = field(default_factory=list)


def sweep(database: Database, limits: Limits, reactions: Mapping[str, OnFailed | None]) -> Swept:
    """Take back expired leases, one transaction each; the tenth loss quarantines the job as WORKER_LOST."""
    swept = Swept()
    while True:
        with database.transaction() as tx:
            row = tx.one(
                "UPDATE jobs SET lost_leases = lost_leases + 1, fence = fence + 1, lease_until = NULL,"
                " rung_at = NULL, rings = 0, not_before = clock_timestamp(),"
                " state = CASE WHEN lost_leases + 1 >= %(limit)s THEN 'QUARANTINED' ELSE 'READY' END,"
                " error_reason = CASE WHEN lost_leases + 1 >= %(limit)s THEN 'WORKER_LOST' ELSE error_reason END,"
                " error_message = CASE WHEN lost_leases + 1 >= %(limit)s"
                "   THEN 'every worker that took this job died' ELSE error_message END,"
                " finished_at = CASE WHEN lost_leases + 1 >= %(limit)s THEN clock_timestamp() END"
                " WHERE id = (SELECT id FROM jobs WHERE state = 'RUNNING' AND lease_until < clock_timestamp()"
                "   ORDER BY lease_until FOR UPDATE SKIP LOCKED LIMIT 1)"
                f" RETURNING state, {_COLUMNS}",
                {"limit": limits.max_lost_leases},
            )
            if row is None:
                return swept
            job = _job(row)
            is_final = row["state"] == "QUARANTINED"
            reaction = reactions.get(job.kind)
            if is_final and reaction is not None:
                failure = Failure("WORKER_LOST", "every worker that took this job died", job.attempt, True)
                reaction(tx, job, failure)
        swept.quarantined += is_final
        swept.requeued += not is_final
        swept.details.append(f"{job.kind}:{job.id}")


def due_bells(database: Database, *, is_sweep: bool) -> list[tuple[str, str]]:
    """Mark jobs as rung and return (id, kind): never-rung ones, and on a sweep those that nobody answered for."""
    with database.transaction() as tx:
        rows = tx.all(
            "UPDATE jobs SET rung_at = clock_timestamp(), rings = rings + 1 WHERE id IN ("
            " SELECT id FROM jobs WHERE state = 'READY' AND not_before <= clock_timestamp() AND (rung_at IS NULL"
            "  OR (%(sweep)s AND rung_at < clock_timestamp()"
            "      - make_interval(secs => %(again)s * power(2, least(rings, 2)))))"
            " ORDER BY created_at FOR UPDATE SKIP LOCKED LIMIT %(limit)s) RETURNING id::text AS id, kind",
            {"sweep": is_sweep, "again": RING_AGAIN_SECONDS, "limit": _RING_BATCH},
        )
    return [(row["id"], row["kind"]) for row in rows]


def unring(database: Database, ids: list[str]) -> None:
    """Forget that these were rung, because the broker did not take the bell."""
    with database.transaction() as tx:
        tx.run("UPDATE jobs SET rung_at = NULL WHERE id = ANY(%s::uuid[]) AND state = 'READY'", (ids,))


def oldest_due_seconds(database: Database) -> float:
    """Tell for how long the oldest due job has waited; 0 when none waits."""
    with database.transaction() as tx:
        row = tx.row(
            "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(not_before)), 0)::float AS age"
            " FROM jobs WHERE state = 'READY' AND not_before <= clock_timestamp()"
        )
    return float(row["age"])


def retry(tx: Tx, job_id: str) -> bool:
    """Make a failed or quarantined job due again with fresh counters."""
    return (
        tx.run(
            "UPDATE jobs SET state = 'READY', attempts = 0, lost_leases = 0, rung_at = NULL, rings = 0,"
            " finished_at = NULL, not_before = clock_timestamp()"
            " WHERE id = %s AND state IN ('FAILED', 'QUARANTINED')",
            (job_id,),
        )
        == 1
    )


def hurry(tx: Tx, job_id: str) -> bool:
    """Make a job that waits due now and let it be rung at once; False when it does not wait."""
    return (
        tx.run(
            "UPDATE jobs SET not_before = clock_timestamp(), rung_at = NULL, rings = 0"
            " WHERE id = %s AND state = 'READY'",
            (job_id,),
        )
        == 1
    )


def counts(database: Database) -> dict[str, dict[str, int]]:
    """Count the jobs by kind and state."""
    with database.transaction() as tx:
        rows = tx.all("SELECT kind, state, count(*) AS n FROM jobs GROUP BY kind, state ORDER BY kind, state")
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row["kind"], {})[row["state"]] = row["n"]
    return found
