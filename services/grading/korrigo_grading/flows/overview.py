"""What a control room looks at, in one answer. Started by `rest.operations`.

Grading tells what it knows itself, whether its peers answer, what is stuck there and what their processes counted.
Everything that one moment of the database must show together is read in one transaction.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from korrigo_grading.domain.statuses import STATUSES
from korrigo_grading.models import control_room
from korrigo_grading.models.control_room import Firing, Pace, Progress, Server
from korrigo_grading.settings import LockSettings
from korrigo_kit import jobs, operations, queues, stuck
from korrigo_kit.auth import Principal
from korrigo_kit.db import Tx
from korrigo_kit.errors import KorrigoError
from korrigo_kit.room import Runtime
from korrigo_kit.stuck import Stuck
from korrigo_kit.telemetry import figures
from korrigo_kit.telemetry.figures import Told

PEERS = ("ingest", "render", "audit")
# Rooms that list stuck work of their own.
_WITH_JOBS = ("ingest", "render")
_LIST_SECONDS = 2
# Every room's; the broker is one for all.
QUEUES = ("jobs.ingest", "jobs.render", "events.ingest", "events.grading", "events.render", "events.audit")
LOCK_STATES = ("active", "stale", "expired")
READERS = ("admin", "auditor")

_COPIES = (
    "SELECT status, count(*) AS copies, extract(epoch FROM clock_timestamp() - min(updated_at))::float8 AS oldest"
    " FROM copies WHERE deleted_at IS NULL GROUP BY status"
)
_LOCKS = (
    "SELECT CASE WHEN expires_at <= clock_timestamp() THEN 'expired'"
    " WHEN heartbeat_at < clock_timestamp() - make_interval(secs => %s) THEN 'stale' ELSE 'active' END AS state,"
    " count(*) AS locks FROM copy_locks GROUP BY 1"
)
_OUTBOX = (
    "SELECT count(*) AS unsent, coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS oldest"
    " FROM outbox WHERE sent_at IS NULL"
)
_SESSIONS = (
    "SELECT count(*) AS sessions, count(DISTINCT user_id) AS people FROM sessions"
    " WHERE revoked_at IS NULL AND expires_at > clock_timestamp()"
)
# Parts of processes that ended long ago are history.
_PARTS = (
    "SELECT name, extract(epoch FROM clock_timestamp() - beat_at)::float8 AS silent FROM heartbeats"
    " WHERE beat_at > clock_timestamp() - interval '1 day' AND name NOT LIKE 'figures:%%' ORDER BY name"
)
_FINALISING = (
    "SELECT count(*) AS open, coalesce(extract(epoch FROM clock_timestamp() - min(updated_at)), 0)::float8 AS oldest"
    " FROM copies WHERE status = 'GRADING_IN_PROGRESS' AND deleted_at IS NULL"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder that the product writes to, and the room on its file system, in bytes."""

    name: str
    size: int
    free: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the product at `at`; ages and silences are in seconds."""

    at: datetime
    copies: dict[str, tuple[int, float]]
    locks: dict[str, int]
    finalising: tuple[int, float]
    jobs: dict[str, dict[str, int]]
    oldest_due: float
    outbox: tuple[int, float]
    sessions: int
    people: int
    parts: dict[str, float]
    peers: dict[str, bool]
    stuck: Sequence[Stuck]
    told: Sequence[Told]
    # Rooms that did not tell what they counted.
    unheard: Sequence[str]
    exams: Sequence[Progress]
    pace: Pace
    alerts: Sequence[Firing]
    server: Server
    backup_age: float
    queues: dict[str, dict[str, int]] | None
    volumes: list[Volume]
    versions: dict[str, str]


def overview(rt: Runtime, caller: Principal) -> Overview:
    """Look at everything; raises Forbidden for others than admins and auditors."""
    caller.require(*READERS)
    with ThreadPoolExecutor(2 * len(PEERS) + len(_WITH_JOBS) + 1, thread_name_prefix="overview") as asked:
        # Each peer is waited for one second at most (kit.rpc), all of them together.
        serving = {peer: asked.submit(rt.channels.is_serving, peer) for peer in PEERS}
        listing = {peer: asked.submit(_stuck, rt, peer) for peer in _WITH_JOBS}
        counting = {peer: asked.submit(_told, rt, peer) for peer in PEERS}
        waiting = asked.submit(_queues, rt)
        facts = _facts(rt)
        own = rt.room.stuck(rt)
        peers = {peer: answer.result() for peer, answer in serving.items()}
        theirs = [item for answer in listing.values() for item in answer.result()]
        told = {peer: answer.result() for peer, answer in counting.items()}
    return Overview(
        **facts | {"told": [*facts["told"], *(one for found in told.values() for one in found or ())]},
        unheard=[peer for peer, found in told.items() if found is None],
        jobs=jobs.counts(rt.db),
        oldest_due=jobs.oldest_due_seconds(rt.db),
        peers=peers,
        stuck=stuck.oldest_first([*own, *theirs]),
        queues=waiting.result(),
        volumes=_volumes(rt),
    )


def _stuck(rt: Runtime, peer: str) -> list[Stuck]:
    """Ask a peer what is stuck there; one that is away shows among the peers."""
    try:
        return operations.list_stuck(rt.channels, peer, seconds=_LIST_SECONDS)
    except KorrigoError:
        return []


def _told(rt: Runtime, peer: str) -> list[Told] | None:
    try:
        return operations.ask_figures(rt.channels, peer, seconds=_LIST_SECONDS)
    except KorrigoError:
        return None


def _queues(rt: Runtime) -> dict[str, dict[str, int]] | None:
    """Count what waits in every room's queues; None when the broker does not answer."""
    lengths = queues.lengths(rt.settings, QUEUES)
    if lengths is None:
        return None
    found: dict[str, dict[str, int]] = {queue: {} for queue in QUEUES}
    for (queue, state), number in lengths.items():
        found[queue][state] = number
    return found


def _facts(rt: Runtime) -> dict[str, Any]:
    with rt.db.transaction() as tx:
        copies = {row["status"]: (row["copies"], row["oldest"]) for row in tx.all(_COPIES)}
        locks = {row["state"]: row["locks"] for row in tx.all(_LOCKS, (rt.settings.get(LockSettings).stale_seconds,))}
        finalising, outbox, sessions = tx.row(_FINALISING), tx.row(_OUTBOX), tx.row(_SESSIONS)
        return {
            "at": tx.row("SELECT clock_timestamp() AS now")["now"],
            "copies": {status: copies.get(status, (0, 0.0)) for status in STATUSES},
            "locks": {state: locks.get(state, 0) for state in LOCK_STATES},
            "finalising": (finalising["open"], finalising["oldest"]),
            "outbox": (outbox["unsent"], outbox["oldest"]),
            "sessions": sessions["sessions"],
            "people": sessions["people"],
            "parts": {row["name"]: row["silent"] for row in tx.all(_PARTS)},
            "told": figures.read(tx),
            "exams": control_room.exams(tx),
            "pace": control_room.pace(tx),
            "alerts": control_room.alerts(tx),
            "server": control_room.server(tx),
            "backup_age": control_room.backup_age_seconds(tx),
            "versions": _versions(tx),
        }


def _versions(tx: Tx) -> dict[str, str]:
    row = tx.row(
        "SELECT current_setting('server_version') AS postgres, (SELECT version_num FROM alembic_version) AS schema"
    )
    return {"korrigo": version("korrigo"), "postgresql": row["postgres"], "schema": row["schema"]}


def _volumes(rt: Runtime) -> list[Volume]:
    folders = {"home": rt.settings.home}
    blobs = urlsplit(rt.settings.blobs.url)
    if blobs.scheme == "file":
        folders["blobs"] = Path(unquote(blobs.path))
    found = []
    for name, folder in folders.items():
        if folder is None or not folder.exists():
            continue
        usage = shutil.disk_usage(folder)
        found.append(Volume(name, usage.total, usage.free))
    return found
