"""The audit room on a real PostgreSQL: append once, list in causal order, find every tampering."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from harness.servers import Postgres
from korrigo_audit.consumer import subscriptions
from korrigo_audit.flows import listing
from korrigo_audit.flows.verification import verify
from korrigo_audit.room import ROOM
from korrigo_kit import inbox, outbox
from korrigo_kit.migrate import Plan, connect, migrate
from korrigo_kit.room import Process, Room, Runtime
from korrigo_kit.settings import load
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.grading.v1 import events_pb2

COPY = "01890000-0000-7000-8000-000000000001"


class Rooms:
    """Audit, and two rooms that only write events."""

    def __init__(self, url: str, folder: Path) -> None:
        environ = {
            "KORRIGO_DATABASE__URL": url,
            "KORRIGO_RPC__SECRET": "only for this test, 32 characters",
            **{f"KORRIGO_RPC__{name.upper()}": f"unix:{folder}/{name}" for name in ("ingest", "grading", "render")},
        }
        self.settings = load(environ=environ)
        writers = [Room(name=name, migrations=ROOM.migrations) for name in ("ingest", "grading")]
        rooms = [ROOM, *writers]
        migrate(self.settings.database, [Plan(room.name, room.migrations) for room in rooms])
        self.process = Process.build(rooms, self.settings)
        self.audit: Runtime = self.process.runtimes["audit"]

    def write(self, room: str, action: str | None, **metadata: object) -> event_pb2.Event:
        database = self.process.runtimes[room].db
        with database.transaction() as tx:
            emitted = outbox.emit(
                tx,
                type="recorded",
                subject=("copy", COPY),
                payload=events_pb2.Recorded(),
                action=action,
                metadata=metadata,
            )
        return outbox.fetch(database, subject=("copy", COPY), from_seq=emitted.source_seq, types=(), limit=1)[0]

    def hear(self, event: event_pb2.Event) -> inbox.Outcome:
        subscription = next(s for s in subscriptions(self.audit) if s.source == event.source)
        return inbox.apply(self.audit.db, subscription, event)

    def as_superuser(self, sql: str) -> None:
        with connect(self.settings.database) as connection:
            connection.execute("ALTER TABLE audit.records DISABLE TRIGGER USER")
            connection.execute(sql.encode())
            connection.execute("ALTER TABLE audit.records ENABLE TRIGGER USER")


@pytest.fixture
def rooms(postgres_server: Postgres, tmp_path: Path) -> Iterator[Rooms]:
    """Three rooms in a fresh database."""
    rooms = Rooms(postgres_server.url(postgres_server.create_database("audit")), tmp_path)
    yield rooms
    rooms.process.close()


def test_an_event_is_appended_once_and_never_out_of_order(rooms: Rooms) -> None:
    """Twice offered, once stored; a later one waits for the earlier."""
    first, second = rooms.write("ingest", "IMPORT", pages=4), rooms.write("ingest", None)
    assert rooms.hear(second) is inbox.Outcome.GAP
    assert rooms.hear(first) is inbox.Outcome.APPLIED
    assert rooms.hear(first) is inbox.Outcome.DUPLICATE
    assert rooms.hear(second) is inbox.Outcome.APPLIED
    assert rooms.hear(rooms.write("grading", "VALIDATE")) is inbox.Outcome.APPLIED
    rows = listing.of_subject(rooms.audit.db, "copy", COPY, after_seq=0, limit=10)
    assert rows is not None
    assert [(row["action"], row["seq"]) for row in rows] == [("IMPORT", 1), ("VALIDATE", 3)]
    assert listing.of_subject(rooms.audit.db, "copy", "unknown", after_seq=0, limit=10) is None


def test_the_role_of_the_room_cannot_change_what_was_stored(rooms: Rooms) -> None:
    """Not even audit's own code may update or delete a record."""
    rooms.hear(rooms.write("ingest", "IMPORT"))
    for statement in ("UPDATE records SET actor_id = 'x'", "DELETE FROM records", "TRUNCATE records"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), rooms.audit.db.transaction() as tx:
            tx.run(statement)


@pytest.mark.parametrize(
    ("tamper", "code"),
    [
        ("UPDATE audit.records SET actor_id = 'somebody' WHERE source_seq = 2", "LEAF_MISMATCH"),
        ("UPDATE audit.records SET metadata = '{\"pages\": 9}' WHERE source_seq = 2", "LEAF_MISMATCH"),
        ("UPDATE audit.records SET at = '2020-01-01T00:00:00.000000Z' WHERE source_seq = 2", "LEAF_MISMATCH"),
        ("UPDATE audit.records SET action = 'EXPORT' WHERE source_seq = 2", "LEAF_MISMATCH"),
        ("UPDATE audit.records SET leaf = leaf || ' ' WHERE source_seq = 2", "HASH_MISMATCH"),
        ("DELETE FROM audit.records WHERE source_seq = 2", "GAP"),
    ],
)
def test_what_a_superuser_changes_behind_the_back_is_found(rooms: Rooms, tamper: str, code: str) -> None:
    """Every column of a record is bound to its leaf, every leaf to its hash, every number to its neighbours."""
    for number in range(3):
        rooms.hear(rooms.write("ingest", "IMPORT", pages=number))
    assert verify(rooms.audit).is_valid
    rooms.as_superuser(tamper)
    verdict = verify(rooms.audit)
    assert [(finding.code, finding.source_seq) for finding in verdict.findings] == [(code, 2)]


def test_texts_stay_out_of_the_leaf(rooms: Rooms) -> None:
    """A reason that a person typed is only committed to."""
    database = rooms.process.runtimes["grading"].db
    with database.transaction() as tx:
        outbox.emit(
            tx,
            type="recorded",
            subject=("copy", COPY),
            payload=events_pb2.Recorded(),
            action="REOPEN",
            texts={"reason": "Jean Dupont asked for it"},
        )
        row = tx.row("SELECT leaf FROM outbox")
        kept = tx.row("SELECT text FROM event_texts")
    leaf = bytes(row["leaf"])
    assert b"Dupont" not in leaf
    assert set(json.loads(leaf)["metadata"]) == {"reason_commitment"}
    assert kept["text"] == "Jean Dupont asked for it"
