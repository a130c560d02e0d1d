"""Slow answers: the database, the queues and the machine, in this order (playbooks, scenario 4)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from korrigo.doctor import postgres
from korrigo.doctor.causes import LIKELY, POSSIBLE, SEEN, Cause, Found, Remedy, size, span
from korrigo.doctor.patient import Patient

# Thresholds of operations.md 2 (MemoryPressure, DatabaseConnectionsHigh, QueueBacklog).
_MEMORY_BYTES = 500 * 1000 * 1000
_BUSY = 50
_SHARE = 0.8
_BACKLOG = 50
_WAITS_SECONDS = 60
_HOLDS_SECONDS = 5
_ETA_MINUTES = 30


def _slow_query(patient: Patient) -> Found | None:
    rows = [row for row in postgres.running(patient) if row["waits_for"] != "Lock"]
    if not rows:
        return None
    evidence = (
        f"{len(rows)} statements have run for more than {postgres.SLOW_SECONDS} s",
        *(f"pid {row['pid']} ({row['user']}) for {span(row['seconds'])}: {row['query']}" for row in rows[:3]),
    )
    return Found(SEEN, evidence, {"pid": str(rows[0]["pid"])})


def _lock_contention(patient: Patient) -> Found | None:
    waiting = [row for row in postgres.blocked(patient) if row["blocker"] is not None]
    if waiting:
        first = waiting[0]
        holder = f"{first['blocker_user']}, {first['blocker_state']}, open for {span(first['blocker_seconds'] or 0)}"
        evidence = [f"{len(waiting)} sessions wait for a lock of pid {first['blocker']} ({holder})"]
        evidence += [f"pid {row['pid']} waits for {span(row['seconds'])}: {row['query']}" for row in waiting[:3]]
        return Found(SEEN + 0.05, tuple(evidence), {"pid": str(first["blocker"])})
    # The rooms give up after KORRIGO_DATABASE__LOCK_TIMEOUT_SECONDS, so at this moment perhaps nobody waits.
    holders = [
        row
        for row in postgres.transactions(patient, _HOLDS_SECONDS)
        if row["state"].startswith("idle in transaction") and row["locks"]
    ]
    if not holders:
        return None
    busy = patient.lines.having("DATABASE_BUSY", "db_contention")
    evidence = [
        f"pid {row['pid']} ({row['user']}) is {row['state']} for {span(row['seconds'])} and holds {row['locks']} locks"
        for row in holders[:3]
    ]
    evidence += [f"{len(busy)} times within 15 min somebody gave up waiting"] if busy else []
    return Found(LIKELY + (0.15 if busy else 0), tuple(evidence), {"pid": str(holders[0]["pid"])})


_QUEUE = """
SELECT count(*) FILTER (WHERE state = 'READY' AND not_before <= clock_timestamp()) AS due,
       coalesce(extract(epoch FROM clock_timestamp() - min(not_before) FILTER (WHERE state = 'READY'
           AND not_before <= clock_timestamp())), 0)::float8 AS oldest,
       count(*) FILTER (WHERE state = 'DONE' AND finished_at > clock_timestamp() - interval '2 minutes') / 2.0
           AS per_minute,
       count(*) FILTER (WHERE created_at > clock_timestamp() - interval '1 minute') AS came,
       count(*) FILTER (WHERE state = 'DONE' AND finished_at > clock_timestamp() - interval '1 minute') AS went,
       count(*) FILTER (WHERE state = 'RUNNING') AS running
FROM jobs
"""


def queue_backlog(patient: Patient) -> Found | None:
    """Find a queue that more comes into than goes out of, or that takes more than half an hour to drain."""
    for room in ("ingest", "render"):
        row = patient.row(_QUEUE, room=room)
        due, oldest, per_minute = row["due"], row["oldest"], float(row["per_minute"])
        is_draining = per_minute > 0 and due / per_minute <= _ETA_MINUTES
        # However quick they are: as long as more come than go, the queue has no end.
        is_growing = due > _BACKLOG and row["came"] > row["went"]
        if (is_draining and not is_growing) or (due <= _BACKLOG and oldest <= _WAITS_SECONDS):
            continue
        pace = f"{row['running']} run, {per_minute:g} were done per minute lately"
        evidence = f"{room}: {due} jobs are due, the first for {span(oldest)}; {pace}"
        if is_draining:
            evidence += f"; {row['came']} came within the last minute and {row['went']} went"
            return Found(POSSIBLE + 0.1, (evidence,), {"room": room})
        return Found(LIKELY + (0.12 if due > 2 * _BACKLOG else 0.05), (evidence,), {"room": room})
    return None


def _connections_exhausted(patient: Patient) -> Found | None:
    if patient.is_database_full:
        return Found(SEEN + 0.09, (f"the database refuses connections: {patient.database_error}",))
    found = postgres.use(patient)
    if found.busy <= _BUSY and found.total <= _SHARE * found.allowed:
        return None
    text = f"{found.total} connections of {found.allowed} allowed, {found.busy} of them busy"
    rows = patient.rows(
        "SELECT application_name AS name, coalesce(usename, '') AS role, count(*) AS n FROM pg_stat_activity"
        " WHERE datname IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 3"
    )
    return Found(SEEN + 0.07, (text, *(f"{row['n']} by {row['role']} {row['name']}" for row in rows)))


def _memory_pressure(patient: Patient) -> Found | None:
    available = memory_available()
    if available is None or available >= _MEMORY_BYTES:
        return None
    evidence = (
        f"the machine can give only {size(available)} more",
        *(f"pid {pid} holds {size(held)}: {command}" for held, pid, command in largest()),
    )
    return Found(SEEN + 0.02, evidence, {"pid": str(patient.children.get("worker", "PID"))})


def memory_available() -> int | None:
    """Read what the machine can still give, in bytes; None where it does not tell."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def largest(most: int = 3) -> list[tuple[int, int, str]]:
    """List the processes that hold most memory as (bytes, pid, command)."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            pages = int((folder / "statm").read_text().split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found.append((pages * 4096, int(folder.name), command[:80]))
    return sorted(found, reverse=True)[:most]


_END = Remedy(
    "korrigo doctor db --end {pid}",
    "End that session after looking at what it does; whatever it had not committed is undone.",
    "korrigo doctor db --end {pid} --dry-run",
)

CAUSES = (
    Cause(
        "lock-contention",
        "Sessions wait for a lock that another holds",
        ("high-latency", "database", "lock-conflicts", "web"),
        _lock_contention,
        (Remedy("korrigo doctor db", "See who blocks whom."), _END),
        "database-blocked",
    ),
    Cause(
        "slow-query",
        "A statement runs for long",
        ("high-latency", "database", "web"),
        _slow_query,
        (Remedy("korrigo doctor db", "See the slowest statements and the sizes of tables."), _END),
        "high-latency",
    ),
    Cause(
        "connections-exhausted",
        "The database has no connections left",
        ("high-latency", "database", "web", "import-stuck", "finalization-failing", "lock-conflicts"),
        _connections_exhausted,
        (
            Remedy("korrigo doctor db", "See who holds the connections and for how long."),
            Remedy("korrigo config show", "Compare KORRIGO_DATABASE__POOL_SIZE with max_connections of the server."),
        ),
        "database-connections",
    ),
    Cause(
        "memory-pressure",
        "The machine is out of memory",
        ("high-latency", "import-stuck", "finalization-failing"),
        _memory_pressure,
        (
            Remedy("korrigo config show", "Lower KORRIGO_JOBS__CONCURRENCY, or give the machine more memory."),
            Remedy("kill -TERM {pid}", "End the worker; `korrigo up` starts a smaller one at once.",
                   "ps -o pid,rss,args -p {pid}", "embedded"),
        ),
        "high-latency",
    ),
    Cause(
        "queue-backlog",
        "Jobs come faster than they are done",
        ("high-latency", "import-stuck", "finalization-failing", "broker"),
        queue_backlog,
        (
            Remedy("korrigo queue status", "See what waits and who works."),
            Remedy("korrigo work {room}", "Start one more worker; more are safe at any time.", None, "production"),
            Remedy("korrigo config show", "Raise KORRIGO_JOBS__CONCURRENCY when cores and memory are idle.", None,
                   "embedded"),
        ),
        "queue-backlog",
    ),
)  # fmt: skip
