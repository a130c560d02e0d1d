"""A room as one frozen value, and the runtime that a process builds for it.

`services/<room>/room.py` holds nothing but such a value; `kit.serve` and `kit.work` run it, whichever rooms and
parts a process was asked for. There is no embedded-only business code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from korrigo_kit.blobs import BlobStore, open_store
from korrigo_kit.clock import Clock, utc_now
from korrigo_kit.credentials import room_url
from korrigo_kit.db import Database, Tx
from korrigo_kit.errors import Timeout
from korrigo_kit.inbox import Subscription
from korrigo_kit.jobs import Job, OnFailed
from korrigo_kit.rpc import Channels
from korrigo_kit.settings import DatabaseSettings, Section, Settings

if TYPE_CHECKING:
    import grpc
    from fastapi import APIRouter

    from korrigo_kit.interventions import Verb
    from korrigo_kit.sandbox import Sandbox
    from korrigo_kit.stuck import Stuck
    from korrigo_kit.telemetry.metrics import GaugeSource
    from korrigo_protos.common.v1 import event_pb2


class Runtime:
    """What a room's code is given in one process: settings, database, blobs, peers, sandbox, clock."""

    def __init__(self, room: Room, settings: Settings, sandbox: Callable[[], Sandbox]) -> None:
        self.room = room
        self.name = room.name
        self.settings = settings
        self.clock: Clock = utc_now
        self._sandbox = sandbox

    @cached_property
    def db(self) -> Database:
        watched = self.settings.watched(DatabaseSettings)

        def url_now() -> str:
            newer = watched.newer(self.settings.database)
            return room_url(newer or self.settings.database, self.name)

        return Database(self.name, room_url(watched.now(), self.name), self.settings.database, url_now=url_now)

    @cached_property
    def blobs(self) -> BlobStore:
        # Late, because importing a metric settles where its process counts (telemetry.samples).
        from korrigo_kit.counted_blobs import count_errors

        blobs = self.settings.blobs
        store = open_store(
            blobs.url,
            endpoint=blobs.endpoint,
            access_key_id=blobs.access_key_id.get_secret_value() if blobs.access_key_id else None,
            secret_access_key=blobs.secret_access_key.get_secret_value() if blobs.secret_access_key else None,
            region=blobs.region,
        )
        return count_errors(store)

    @cached_property
    def channels(self) -> Channels:
        return Channels(self.settings.rpc, self.name)

    @property
    def sandbox(self) -> Sandbox:
        """The process's sandbox, started when first used."""
        return self._sandbox()

    def close(self) -> None:
        """Close what was opened."""
        for name in ("db", "channels"):
            opened = self.__dict__.get(name)
            if opened is not None:
                opened.close()


class Work:
    """One attempt at a job: the job, its time, its folder."""

    def __init__(self, job: Job, limit_seconds: float, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.is_lost = threading.Event()
        self._ends_at = time.monotonic() + limit_seconds

    def remaining_seconds(self) -> float:
        """Tell how long the attempt may still run; raises Timeout (TIMEOUT) when its time is over."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise Timeout("TIMEOUT", "the job took longer than it may")
        return left


@dataclass(frozen=True)
class Task:
    """A kind of job: what to run, and how the room reacts, in the same transaction, when an attempt failed."""

    run: Callable[[Runtime, Work], None]
    on_failed: OnFailed | None = None


@dataclass(frozen=True)
class Periodic:
    """Work that the sweeper does again and again; must be safe when two do it at once."""

    name: str
    interval_seconds: float
    run: Callable[[Runtime], object]


def _nothing(_: Runtime) -> Sequence[Any]:
    return ()


def _no_tasks(_: Runtime) -> Mapping[str, Task]:
    return {}


def _no_verbs(_: Runtime) -> Mapping[str, Verb]:
    return {}


@dataclass(frozen=True)
class Room:
    """One service: its name, its migrations, and how its faces are built from a runtime."""

    name: str
    migrations: Path
    settings: tuple[type[Section], ...] = ()
    routers: Callable[[Runtime], Sequence[APIRouter]] = _nothing
    servicers: Callable[[Runtime], Sequence[Callable[[grpc.Server], None]]] = _nothing
    subscriptions: Callable[[Runtime], Sequence[Subscription]] = _nothing
    tasks: Callable[[Runtime], Mapping[str, Task]] = _no_tasks
    periodic: Callable[[Runtime], Sequence[Periodic]] = _nothing
    gauges: Callable[[Runtime], Sequence[GaugeSource]] = _nothing
    # What of this room's work is not healed in time (kit.stuck).
    stuck: Callable[[Runtime], Sequence[Stuck]] = _nothing
    # Acts of healing that this room does, by name (kit.interventions).
    interventions: Callable[[Runtime], Mapping[str, Verb]] = _no_verbs
    # Applies an event of this room in the transaction that wrote it, for the room that nobody else follows.
    hears_itself: Callable[[Tx, event_pb2.Event], None] | None = None
    # Modules that the sandbox's zygote loads once; only engine modules.
    sandbox_preload: tuple[str, ...] = ()


@dataclass
class Process:
    """The runtimes of one process, with the one sandbox that they share."""

    runtimes: dict[str, Runtime] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def build(cls, rooms: Sequence[Room], settings: Settings) -> Process:
        """Make the runtimes of these rooms; nothing connects before it is used."""
        process = cls()
        preload = tuple(module for room in rooms for module in room.sandbox_preload)
        lock = threading.Lock()
        made: list[Sandbox] = []

        def sandbox() -> Sandbox:
            with lock:
                if not made:
                    from korrigo_kit.sandbox import Sandbox

                    made.append(Sandbox(preload))
                    process._stack.callback(made[0].close)
                return made[0]

        for room in rooms:
            process.runtimes[room.name] = Runtime(room, settings, sandbox)
        return process

    def close(self) -> None:
        """Close the sandbox and everything that was opened."""
        self._stack.close()
        for runtime in self.runtimes.values():
            runtime.close()


def add_blob_ref(tx: Tx, sha256: str, owner_kind: str, owner_id: str) -> None:
    """Note that this room refers to a blob; every reference is such a row (decisions.md, Blobs)."""
    tx.run(
        "INSERT INTO blob_refs (sha256, owner_kind, owner_id) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (sha256, owner_kind, owner_id),
    )
