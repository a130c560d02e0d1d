"""One room that is locked out of the database takes only its own gauges along, and is told as not swept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from harness.scrapes import Scrape
from harness.servers import Postgres
from korrigo_audit.room import ROOM as AUDIT
from korrigo_ingest.room import ROOM as INGEST
from korrigo_kit.migrate import Plan, migrate
from korrigo_kit.parts import SWEPT, beat
from korrigo_kit.room import Process, Room
from korrigo_kit.settings import load
from korrigo_kit.telemetry import gauges
from korrigo_kit.telemetry.metrics import expose

ROOMS = (INGEST, AUDIT)


@pytest.fixture
def database(postgres_server: Postgres) -> str:
    """Name of a database of the test's own: its rights are changed."""
    return postgres_server.create_database("lockout")


@pytest.fixture
def process(postgres_server: Postgres, database: str, tmp_path: Path) -> Iterator[Process]:
    environ = {
        "KORRIGO_DATABASE__URL": postgres_server.url(database),
        "KORRIGO_BLOBS__URL": f"file://{tmp_path}",
        "KORRIGO_BROKER__URL": "pgmq://",
    }
    settings = load([section for room in ROOMS for section in room.settings], environ)
    migrate(settings.database, [Plan(room.name, room.migrations) for room in ROOMS])
    made = Process.build(ROOMS, settings)
    for runtime in made.runtimes.values():
        beat(runtime, SWEPT)
    yield made
    made.close()


def _lock_out(server: Postgres, database: str, room: Room) -> None:
    """Let a room's role into this database no more; the role is the server's and stays as it is."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        name = sql.Identifier(database)
        connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(name))
        for other in ROOMS:
            word = "REVOKE CONNECT ON DATABASE {} FROM {}" if other is room else "GRANT CONNECT ON DATABASE {} TO {}"
            connection.execute(sql.SQL(word).format(name, sql.Identifier(f"korrigo_{other.name}")))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND usename = %s",
            (database, f"korrigo_{room.name}"),
        )


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_the_others_are_told_and_the_sweep_grows_old(
    process: Process, postgres_server: Postgres, database: str, room: Room
) -> None:
    collectors = gauges.collectors(process.runtimes, 0)
    before = Scrape(expose(collectors).decode())
    swept_at = before.get("grading_sweep_last_success_timestamp_seconds")
    assert abs(time.time() - swept_at) < 60
    (other,) = {found.name for found in ROOMS} - {room.name}
    _lock_out(postgres_server, database, room)
    beat(process.runtimes[other], SWEPT)
    page = Scrape(expose(collectors).decode())
    assert page.get("grading_db_up") == 1, "the database answers; one role is refused"
    assert page.get("grading_sweep_last_success_timestamp_seconds") == pytest.approx(swept_at, abs=1)
    for name in ("grading_db_connections_max", "grading_stuck_copies", "grading_audit_outbox_oldest_seconds"):
        assert name in page.types, name
    named = {dict(labels)["queue"] for labels in page.of("grading_workers_ready")}
    assert {queue.partition(".")[2] for queue in named} == {other}
