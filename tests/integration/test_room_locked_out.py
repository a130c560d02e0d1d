"""One room that is locked out of the database: it takes only its own gauges along, and sessions stay what they were."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from harness.processes import wait_for
from harness.scrapes import Scrape
from harness.servers import Postgres
from korrigo_audit.room import ROOM as AUDIT
from korrigo_ingest.room import ROOM as INGEST
from korrigo_kit.auth import RevokedSessions, revoke
from korrigo_kit.db import Database
from korrigo_kit.errors import Unavailable
from korrigo_kit.ids import new_id
from korrigo_kit.migrate import Plan, migrate
from korrigo_kit.parts import SWEPT, beat
from korrigo_kit.room import Process, Room
from korrigo_kit.settings import load
from korrigo_kit.stuck import WORKER_PREFIX
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


def _lock_out(server: Postgres, database: str, *out: Room) -> None:
    """Let the roles of rooms into this database no more; the roles are the server's and stay as they are."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        name = sql.Identifier(database)
        connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(name))
        for room in ROOMS:
            word = "REVOKE CONNECT ON DATABASE {} FROM {}" if room in out else "GRANT CONNECT ON DATABASE {} TO {}"
            connection.execute(sql.SQL(word).format(name, sql.Identifier(f"korrigo_{room.name}")))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND usename = ANY(%s)",
            (database, [f"korrigo_{room.name}" for room in out]),
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
    assert page.of("grading_workers_ready") == before.of("grading_workers_ready"), "what was seen last counts on"


def test_a_room_that_cannot_be_asked_is_taken_at_its_last_word_for_10_minutes(
    process: Process, postgres_server: Postgres, database: str
) -> None:
    """Neither ends ImportStuck with a timeout, nor begins WorkersDown while workers live."""
    ingest = process.runtimes["ingest"]
    now = 1000.0
    collectors = gauges.collectors(process.runtimes, 0, lambda: now)

    def seen() -> tuple[float, float | None]:
        page = Scrape(expose(collectors).decode())
        workers = page.of("grading_workers_ready").get(frozenset({("queue", "jobs.ingest")}))
        return page.get("grading_stuck_copies", stage="import", reason="retries_exhausted"), workers

    beat(ingest, f"{WORKER_PREFIX}here:1", busy=0, pool=2)
    with ingest.db.transaction() as tx:
        tx.run(
            "INSERT INTO jobs (id, kind, subject_id, payload, request_id, traceparent, state, finished_at)"
            " VALUES (%s, 'import', %s, '{}', '', '', 'QUARANTINED', clock_timestamp())",
            (new_id(), new_id()),
        )
    assert seen() == (1, 1)
    _lock_out(postgres_server, database, INGEST)
    assert seen() == (1, 1)
    now += gauges.KEPT_SECONDS
    assert seen() == (1, 1)
    now += 1
    assert seen() == (0, None), "what nobody has seen for that long hides nothing any more"
    _lock_out(postgres_server, database)
    beat(ingest, f"{WORKER_PREFIX}here:1", busy=0, pool=2)
    assert seen() == (1, 1)
    with ingest.db.transaction() as tx:
        tx.run("DELETE FROM jobs")
    assert seen() == (0, 1), "a room that answers is believed at once"


def test_a_session_that_ended_stays_refused(process: Process, postgres_server: Postgres, database: str) -> None:
    audit, ingest = process.runtimes["audit"].db, process.runtimes["ingest"].db
    in_an_hour = int(time.time()) + 3600

    def end(room: Database, session_id: str) -> None:
        with room.transaction() as tx:
            revoke(tx, session_id, in_an_hour)

    end(audit, "told-to-audit")
    revoked = RevokedSessions([ingest, audit])
    assert "told-to-audit" in revoked and "nobody" not in revoked
    _lock_out(postgres_server, database, AUDIT)
    end(ingest, "told-to-ingest")
    wait_for("the new one is refused", lambda: "told-to-ingest" in revoked, seconds=5)
    assert "told-to-audit" in revoked and "nobody" not in revoked
    _lock_out(postgres_server, database, AUDIT, INGEST)

    def is_refused() -> bool:
        try:
            assert "nobody" not in revoked
        except Unavailable:
            return True
        return False

    wait_for("an answer that nobody can give", is_refused, seconds=5)
