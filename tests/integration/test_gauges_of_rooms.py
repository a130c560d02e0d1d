"""Gauges that come from the database: they rise, they fall to 0, and they are there when it is away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from harness.grading_copies import Desk
from harness.grading_room import GradingRoom
from harness.processes import wait_for
from harness.scrapes import Scrape
from harness.servers import Postgres
from korrigo_audit.consumer import subscriptions
from korrigo_audit.flows import chain, completeness
from korrigo_audit.room import ROOM as AUDIT
from korrigo_grading.flows import locking
from korrigo_kit import inbox, jobs, outbox, stuck
from korrigo_kit.ids import new_id
from korrigo_kit.migrate import Plan, connect, migrate
from korrigo_kit.room import Process, Room
from korrigo_kit.rpc import RpcServer
from korrigo_kit.settings import load
from korrigo_protos.grading.v1 import events_pb2


# ----------------------------------------------------------------------------------------------- gauges
@pytest.fixture
def room(postgres_server: Postgres, tmp_path: Path) -> Iterator[GradingRoom]:
    """Grading alone, its gauges computed at every scrape."""
    made = GradingRoom(postgres_server, tmp_path, {"KORRIGO_HTTP__METRICS_CACHE_SECONDS": "0"})
    yield made
    made.close()


def _scrape(room: GradingRoom) -> Scrape:
    answer = httpx.get(f"{room.url}/metrics", timeout=30, trust_env=False)
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/plain")
    return Scrape(answer.text)


def test_gauges_rise_and_fall(room: GradingRoom) -> None:
    desk = Desk(room.rt)
    marker = desk.person("marker")
    assert _scrape(room).total("grading_copies_by_status") == 0
    copy_id = desk.ready(marker)
    assert _scrape(room).get("grading_copies_by_status", status="READY") == 1
    desk.sql("UPDATE copies SET updated_at = updated_at - interval '90 seconds' WHERE id = %s", copy_id)
    assert 90 <= _scrape(room).get("grading_oldest_copy_age_seconds", status="READY") < 120
    desk.sql("UPDATE copies SET deleted_at = clock_timestamp() WHERE id = %s", copy_id)
    page = _scrape(room)
    assert page.total("grading_copies_by_status") == 0
    assert page.get("grading_oldest_copy_age_seconds", status="READY") == 0
    installed = page.get("grading_backup_last_success_timestamp_seconds")
    assert 0 < time.time() - installed < 3600
    desk.sql("INSERT INTO heartbeats (name, beat_at) VALUES ('backup', to_timestamp(%s))", installed + 1)
    assert _scrape(room).get("grading_backup_last_success_timestamp_seconds") == pytest.approx(installed + 1)


def test_a_lingering_lock_is_stuck_until_it_is_swept(room: GradingRoom) -> None:
    desk = Desk(room.rt)
    marker = desk.person("marker")
    copy_id = desk.ready(marker)
    locking.acquire(room.rt, marker, copy_id, locking.Wish())
    assert _scrape(room).get("grading_locks", state="active") == 1
    desk.age_lock(copy_id, 1800 + 61)
    page = _scrape(room)
    assert page.get("grading_locks", state="expired") == 1
    assert page.get("grading_stuck_copies", stage="lock", reason="lock_expired") == 1
    locking.sweep(room.rt)
    page = _scrape(room)
    assert page.total("grading_locks") == 0 and page.total("grading_stuck_copies") == 0


def test_database_gauges(room: GradingRoom) -> None:
    count = "SELECT count(*) FROM grading.exams"
    with ThreadPoolExecutor(1) as beside, psycopg.connect(room.database_url) as other:
        other.execute("LOCK TABLE grading.exams IN ACCESS EXCLUSIVE MODE")
        page = _scrape(room)
        assert page.get("grading_db_connections", state="idle_in_transaction") >= 1
        assert page.get("grading_db_blocked_queries") == 0
        assert page.total("grading_db_connections") <= page.get("grading_db_connections_max")
        blocked = beside.submit(lambda: _one(room.database_url, count))
        wait_for("a blocked query", lambda: _scrape(room).get("grading_db_blocked_queries") == 1, seconds=20)
        other.rollback()
        assert blocked.result(20) == 0
    assert _scrape(room).get("grading_db_blocked_queries") == 0
    assert _scrape(room).get("grading_db_up") == 1


def _one(url: str, statement: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def test_the_page_is_there_while_the_database_is_away(room: GradingRoom, postgres_server: Postgres) -> None:
    name = room.database_url.rpartition("/")[2].partition("?")[0]
    with psycopg.connect(postgres_server.url(), autocommit=True) as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        began = time.monotonic()
        page = _scrape(room)
        assert time.monotonic() - began < 5
        assert page.get("grading_db_up") == 0
        assert "grading_copies_by_status" not in page.types and "http_requests_total" in page.types
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
    page = _scrape(room)
    assert page.get("grading_db_up") == 1 and "grading_copies_by_status" in page.types


# ----------------------------------------------------------------------------------------------- stuck
IDLE, BUSY, AWAY = {"busy": 0, "pool": 2}, {"busy": 2, "pool": 2}, None
PLAIN: dict[str, Any] = {"state": "READY"}
RUNNING = {"state": "RUNNING", "lease_until": 20, "heartbeat_at": -5, "started_at": -5}


@pytest.mark.parametrize(
    ("job", "worker", "reason"),
    [
        (PLAIN | {"not_before": -50}, IDLE, None),
        (PLAIN | {"not_before": -70}, IDLE, "lost_task"),
        (PLAIN | {"not_before": -500}, BUSY, None),
        (PLAIN | {"not_before": -70}, AWAY, "worker_dead"),
        (PLAIN | {"not_before": 20, "attempts": 2}, IDLE, None),
        (PLAIN | {"not_before": 20, "postponements": 6, "error_reason": "X"}, IDLE, "no_progress"),
        (RUNNING, IDLE, None),
        (RUNNING | {"heartbeat_at": -70, "lease_until": -40}, IDLE, "worker_dead"),
        (RUNNING | {"started_at": -700}, IDLE, "no_progress"),
        (RUNNING | {"started_at": -700, "attempts": 1}, IDLE, None),
        ({"state": "QUARANTINED", "finished_at": 0, "error_reason": "TIMEOUT"}, IDLE, "retries_exhausted"),
        ({"state": "FAILED", "finished_at": -500}, IDLE, None),
        ({"state": "DONE", "finished_at": -500}, AWAY, None),
    ],
)
def test_when_a_job_is_stuck(
    room: GradingRoom, job: dict[str, Any], worker: dict[str, int] | None, reason: str | None
) -> None:
    _put(room, "work", worker, job)
    assert [found.reason for found in _stuck(room)] == ([reason] if reason else [])


def test_a_draining_batch_is_not_stuck_but_an_overtaken_job_is(room: GradingRoom) -> None:
    """Two hundred jobs that wait in turn for minutes page nobody; the one that the others passed does."""
    done = {"state": "DONE", "finished_at": -2, "started_at": -4, "created_at": -300, "not_before": -300}
    waiting = {"state": "READY", "not_before": -290, "created_at": -290}
    _put(room, "work", IDLE, done, *[waiting] * 200)
    assert _stuck(room) == []
    _put(room, "work", None, {"state": "READY", "not_before": -390, "created_at": -390})
    (found,) = _stuck(room)
    assert found.reason == "lost_task"


def test_a_copy_that_failed_for_good_is_listed_until_it_is_retried(room: GradingRoom) -> None:
    desk = Desk(room.rt)
    copy_id = desk.ready(desk.person("marker"))
    # A change of status needs its event (the trigger of grading); here only the state matters.
    with psycopg.connect(room.database_url) as server:
        server.execute("SET session_replication_role = replica")
        server.execute("UPDATE grading.copies SET status = 'GRADING_FAILED' WHERE id = %s", (copy_id,))
    page = _scrape(room)
    assert page.get("grading_copies_retries_exhausted") == 1
    assert page.get("grading_stuck_copies", stage="finalize", reason="retries_exhausted") == 1
    with psycopg.connect(room.database_url) as server:
        server.execute("SET session_replication_role = replica")
        server.execute("UPDATE grading.copies SET status = 'LOCKED' WHERE id = %s", (copy_id,))
    page = _scrape(room)
    assert page.get("grading_copies_retries_exhausted") == 0
    assert page.get("grading_stuck_copies", stage="finalize", reason="retries_exhausted") == 0


def _put(room: GradingRoom, kind: str, worker: dict[str, int] | None, *rows: dict[str, Any]) -> None:
    """Write job rows; times are seconds from now."""
    times = ("not_before", "lease_until", "heartbeat_at", "started_at", "finished_at", "created_at")
    with room.rt.db.transaction() as tx:
        if worker is not None:
            tx.run("INSERT INTO heartbeats (name, facts) VALUES ('worker:here:1', %s)", (json.dumps(worker),))
        for row in rows:
            columns = {"id": new_id(), "kind": kind, "subject_id": "s", "payload": "{}", "request_id": "r"} | row
            values = ", ".join(
                f"clock_timestamp() + make_interval(secs => %({name})s)" if name in times else f"%({name})s"
                for name in columns
            )
            tx.run(f"INSERT INTO jobs ({', '.join(columns)}, traceparent) VALUES ({values}, '')", columns)


def _stuck(room: GradingRoom) -> list[stuck.StuckJob]:
    with room.rt.db.transaction() as tx:
        return stuck.stuck_jobs(tx, "work", room.settings.jobs)


def test_a_retried_job_is_no_longer_stuck(room: GradingRoom) -> None:
    _put(room, "work", IDLE, {"state": "QUARANTINED", "finished_at": -5})
    (found,) = _stuck(room)
    with room.rt.db.transaction() as tx:
        assert jobs.retry(tx, found.id)
    assert _stuck(room) == []


# ----------------------------------------------------------------------------------------------- audit
class Trail:
    """The audit room, and ingest as a room that only writes events and answers for them."""

    def __init__(self, url: str, folder: Path) -> None:
        rooms = {name: f"unix:{folder}/{name}" for name in ("ingest", "grading", "render")}
        environ = {f"KORRIGO_RPC__{name.upper()}": address for name, address in rooms.items()}
        environ |= {"KORRIGO_DATABASE__URL": url, "KORRIGO_RPC__SECRET": "only for this test, 32 characters"}
        self.settings = load(environ=environ)
        known = [AUDIT, Room(name="ingest", migrations=AUDIT.migrations)]
        migrate(self.settings.database, [Plan(room.name, room.migrations) for room in known])
        self.process = Process.build(known, self.settings)
        self.audit = self.process.runtimes["audit"]
        self.source = self.process.runtimes["ingest"].db
        self.server = RpcServer("ingest", self.settings.rpc, self.source, ())
        self.server.start()
        self.subject = ("copy", new_id())

    def write(self, action: str | None) -> None:
        with self.source.transaction() as tx:
            outbox.emit(tx, type="recorded", subject=self.subject, payload=events_pb2.Recorded(), action=action)

    def hear(self) -> None:
        (subscription,) = [found for found in subscriptions(self.audit) if found.source == "ingest"]
        for event in outbox.fetch(self.source, subject=self.subject, from_seq=1, types=(), limit=100):
            inbox.apply(self.audit.db, subscription, event)

    def tamper(self, statement: str) -> None:
        with connect(self.settings.database) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(statement.encode())

    def close(self) -> None:
        self.server.stop(0)
        self.process.close()


@pytest.fixture
def trail(postgres_server: Postgres, tmp_path: Path) -> Iterator[Trail]:
    """Two rooms in a fresh database."""
    made = Trail(postgres_server.url(postgres_server.create_database("trail")), tmp_path)
    yield made
    made.close()


def test_missing_events_are_counted_by_action_and_fall_to_0(trail: Trail) -> None:
    for action in ("IMPORT", None, "RELEASE", "VALIDATE"):
        trail.write(action)
    assert completeness.missing(trail.audit) == {}, "young events are on their way"
    assert completeness.missing(trail.audit, 0) == {"IMPORT": 1, "OTHER": 2, "VALIDATE": 1}
    trail.hear()
    assert completeness.missing(trail.audit, 0) == {}
    trail.tamper("CREATE TABLE public.kept AS SELECT * FROM audit.records WHERE source_seq IN (1, 4)")
    trail.tamper("DELETE FROM audit.records WHERE source_seq IN (1, 4)")
    assert completeness.missing(trail.audit) == {"IMPORT": 1, "VALIDATE": 1}
    trail.tamper("INSERT INTO audit.records SELECT * FROM public.kept")
    assert completeness.missing(trail.audit) == {}


def test_a_changed_event_breaks_the_chain_until_a_whole_round_is_clean(trail: Trail) -> None:
    for action in ("IMPORT", "VALIDATE"):
        trail.write(action)
    trail.hear()
    assert chain.is_valid(trail.audit)
    assert chain.verify_next(trail.audit) == 0 and chain.is_valid(trail.audit)
    trail.tamper("UPDATE audit.records SET action = 'EXPORT' WHERE source_seq = 2")
    assert chain.verify_next(trail.audit) == 1 and not chain.is_valid(trail.audit)
    trail.tamper("UPDATE audit.records SET action = 'VALIDATE' WHERE source_seq = 2")
    assert not chain.is_valid(trail.audit)
    assert chain.verify_next(trail.audit) == 0 and chain.is_valid(trail.audit)
