"""All four rooms on one real PostgreSQL, served over gRPC in this process, with no supervisor: production in small.

For tests of what operators ask: `korrigo doctor` looks at it by its environment alone. Heartbeats of workers, relays
and sweepers are written by hand (`well`), because no such process runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.grading_room import _environment
from harness.servers import Postgres
from korrigo import rooms
from korrigo.commands import migrate
from korrigo.doctor import registry
from korrigo.doctor.causes import Diagnosis
from korrigo.doctor.patient import Patient
from korrigo.home import Home
from korrigo_kit import inbox
from korrigo_kit.parts import SWEPT, beat
from korrigo_kit.room import Process, Runtime
from korrigo_kit.rpc import RpcServer

ADMIN_PASSWORD = "correct-horse-battery"


class WholeRooms:
    """The rooms, their database, and the environment that leads there."""

    def __init__(self, server: Postgres, folder: Path, extra: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.url = server.url(server.create_database("whole"))
        (folder / "blobs").mkdir(parents=True)
        (folder / "logs").mkdir()
        self.environ = {
            **_environment(self.url, folder),
            "KORRIGO_RPC__AUDIT": f"unix:{folder}/audit.sock",
            "KORRIGO_HOME": str(folder / "no-home"),
            "KORRIGO_LOG__DIRECTORY": str(folder / "logs"),
            "KORRIGO_ADMIN_PASSWORD": ADMIN_PASSWORD,
            **(extra or {}),
        }
        with self.environment():
            self.settings = rooms.load_settings()
            migrate.apply(self.settings)
        self._process = Process.build(rooms.rooms(), self.settings)
        self._servers: dict[str, RpcServer] = {}
        for name in rooms.NAMES:
            self.serve(name)

    def __getitem__(self, room: str) -> Runtime:
        return self._process.runtimes[room]

    def environment(self) -> ExitStack:
        """Be this installation's own machine, until the stack is closed."""
        stack = ExitStack()
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith("KORRIGO_")]:
            patch.delenv(name)
        for name, value in self.environ.items():
            patch.setenv(name, value)
        return stack

    def serve(self, room: str) -> None:
        """Let a room answer over gRPC."""
        rt = self[room]
        self._servers[room] = RpcServer(room, self.settings.rpc, rt.db, rt.room.servicers(rt))
        self._servers[room].start()

    def hush(self, room: str) -> None:
        """Let a room answer no more."""
        self._servers.pop(room).stop(0)

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Do something behind the rooms' backs, as the superuser and without triggers."""
        with psycopg.connect(self.url) as connection:
            connection.execute("SET session_replication_role = replica")
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def well(self) -> None:
        """Let every part of every room have given a sign just now."""
        for name in rooms.NAMES:
            for part in ("worker:test:1", "relay", "sweeper", SWEPT):
                beat(self[name], part)

    def drain(self) -> None:
        """Bring every event to everybody who follows, and count it as sent."""
        for name in rooms.NAMES:
            for subscription in self[name].room.subscriptions(self[name]):
                inbox.catch_up(self[name].db, subscription, self[name].channels)
            with self[name].db.transaction() as tx:
                tx.run("UPDATE outbox SET sent_at = clock_timestamp() WHERE sent_at IS NULL")

    def diagnose(self, *scenarios: str, **changed: str) -> Sequence[Diagnosis]:
        """Run the diagnosis as the command does, with some variables changed."""
        with self.environment() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in changed.items():
                patch.setenv(name, value)
            patient = Patient(Home.locate())
            try:
                looked = registry.Looked(patient)
                return [looked.diagnose(name) for name in scenarios]
            finally:
                patient.close()

    def close(self) -> None:
        """Stop everything."""
        for name in list(self._servers):
            self.hush(name)
        self._process.close()
