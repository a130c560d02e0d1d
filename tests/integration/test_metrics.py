"""Metrics are what the contract says, count once whatever dies, and gauges fall when they should."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest

import korrigo_audit.metrics
import korrigo_grading.metrics
import korrigo_ingest.metrics
from harness.grading_copies import Desk
from harness.grading_room import GradingRoom
from harness.processes import wait_for
from harness.scrapes import CONTRACT, Scrape
from harness.servers import Postgres
from korrigo_audit.consumer import subscriptions
from korrigo_audit.flows import chain, completeness
from korrigo_audit.room import ROOM as AUDIT
from korrigo_grading.flows import locking
from korrigo_kit import inbox, jobs, outbox, stuck
from korrigo_kit.ids import new_id
from korrigo_kit.migrate import Plan, connect, migrate
from korrigo_kit.rest import edge
from korrigo_kit.room import Process, Room
from korrigo_kit.rpc import RpcServer
from korrigo_kit.settings import load
from korrigo_kit.telemetry import gauges, metrics, samples
from korrigo_protos.grading.v1 import events_pb2

SERVICES = Path(__file__).resolve().parents[2] / "services"
ROOMS = (korrigo_ingest.metrics, korrigo_grading.metrics, korrigo_audit.metrics, gauges)


# ----------------------------------------------------------------------------------------------- the contract
def test_what_is_declared_is_the_contract() -> None:
    declared = {m.name: (m.kind, tuple(m.labels), m.buckets) for m in metrics.DECLARED.values()}
    assert declared == CONTRACT
    assert all(m.text.endswith(".") and "  " not in m.text for m in metrics.DECLARED.values())


def test_nothing_is_measured_without_a_declaration() -> None:
    """Only kit.telemetry touches the library's classes, so every name passes through a declaration."""
    forbidden = {"Counter", "Histogram", "Gauge", "Summary", "Info", "Enum", "GaugeMetricFamily", "CounterMetricFamily"}
    found = []
    for path in SERVICES.rglob("*.py"):
        if path.parent.name == "telemetry":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prometheus_client"):
                found += [f"{path.name}: {name.name}" for name in node.names if name.name in forbidden]
    assert not found


def test_a_name_is_declared_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        metrics.counter("grading_ocr_errors_total", "Again.")


def test_known_label_sets_are_there_from_the_start() -> None:
    script = (
        "import korrigo_ingest.metrics, korrigo_grading.metrics\n"
        "from korrigo_kit.telemetry.metrics import expose\nprint(expose([]).decode())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    page = Scrape(done.stdout)
    missing = [
        (declared.name, values)
        for declared in metrics.DECLARED.values()
        if declared.kind != "gauge" and declared.labels
        for values in declared.known_label_sets()
        if page.numbers.get(
            (
                declared.name + ("_count" if declared.kind == "histogram" else ""),
                frozenset(zip(declared.labels, values, strict=True)),
            )
        )
        != 0
    ]
    assert not missing
    assert page.get("grading_login_failures_total") == 0


# ----------------------------------------------------------------------------------------------- HTTP
def _answers(*requests: tuple[str, str]) -> list[int]:
    """Send requests to an app with one route, behind the edge; returns the codes."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    def item(item_id: str) -> str:
        if item_id == "broken":
            raise RuntimeError("as asked")
        return item_id

    app.add_middleware(edge.Edge, hosts=None, service="test")

    async def send() -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [(await client.request(method, path)).status_code for method, path in requests]

    return asyncio.run(send())


def _requests() -> Scrape:
    return Scrape(generate_latest(metrics.process_registry()).decode())


def test_paths_are_templates_and_strangers_make_no_series(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    before = _requests()
    for number in range(30):
        asked = (("GET", f"/items/{number}"), ("GET", f"/nowhere/{number}"), (f"STRANGE{number}", "/nowhere"))
        assert _answers(*asked) == [200, 404, 404]
    after = _requests()
    new = {labels for labels in after.of("http_requests_total") if labels not in before.of("http_requests_total")}
    assert {dict(labels)["path"] for labels in new} <= {"/items/{item_id}", "unmatched"}
    assert after.get("http_requests_total", method="GET", path="/items/{item_id}", status="200") == 30
    assert {dict(labels)["method"] for labels in new} <= {"GET", "OTHER"} and len(new) <= 3


def test_an_exception_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    labels = {"method": "GET", "path": "/items/{item_id}", "status": "500"}
    for count in (1, 2):
        assert _answers(("GET", "/items/broken")) == [500]
        page = _requests()
        assert page.get("http_requests_total", **labels) == count
        assert page.get("http_request_duration_seconds_count", **labels) == count


# ----------------------------------------------------------------------------------------------- shared samples
COUNTING = """
import sys, time
from korrigo_kit.telemetry.metrics import counter, histogram
times = counter("times_total", "Times.", kind=("a", "b"))
seconds = histogram("long_seconds", "Seconds.", (1, 2))
for number in range(int(sys.argv[1])):
    times.labels("a").inc()
    seconds.observe(number % 3)
print("counted", flush=True)
time.sleep(60)
"""


class Counting:
    """Processes that count into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader = samples.SharedSamples(folder)

    def start(self, count: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(count)],
            env={**os.environ, samples.VARIABLE: str(self.folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "counted\n"
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def read(self) -> dict[str, float]:
        found = {}
        for family in self.reader.collect():
            for sample in family.samples if family.name in ("times", "long_seconds") else ():
                found[f"{sample.name}{json.dumps(sample.labels)}"] = sample.value
        return found

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.db"))


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    """A folder of samples of its own."""
    return Counting(tmp_path)


def test_what_the_dead_had_counted_stays_and_their_files_go(counting: Counting) -> None:
    living, dying = counting.start(7), counting.start(5)
    expected = {
        'times_total{"kind": "a"}': 12.0,
        'times_total{"kind": "b"}': 0.0,
        'long_seconds_bucket{"le": "1.0"}': 5 + 4.0,
        'long_seconds_bucket{"le": "2.0"}': 12.0,
        'long_seconds_bucket{"le": "+Inf"}': 12.0,
        "long_seconds_count{}": 12.0,
        "long_seconds_sum{}": 6 + 4.0,
    }
    assert counting.read() == expected
    counting.kill(dying)
    for _ in range(3):
        assert counting.read() == expected
    assert len(counting.files()) == 2 and all(f"_{living.pid}-" in name for name in counting.files())
    counting.kill(living)
    assert counting.read() == expected
    assert counting.files() == []
    for _ in range(3):  # files are bounded by the living, whatever dies
        counting.kill(counting.start(1))
        counting.read()
        assert counting.files() == []
    assert counting.read()['times_total{"kind": "a"}'] == 15


def test_a_reader_that_was_killed_while_tidying_counts_nothing_twice(counting: Counting) -> None:
    counting.kill(counting.start(4))
    left = {path.name: path.read_bytes() for path in counting.folder.glob("*.db")}
    before = counting.read()
    for name, data in left.items():  # as if the sum was written and the files were not yet removed
        (counting.folder / name).write_bytes(data)
    assert counting.read() == before
    assert counting.files() == []


def test_files_of_a_process_killed_while_making_them_do_no_harm(counting: Counting) -> None:
    counting.kill(counting.start(2))
    for name, data in (("counter_1-1.db", b""), ("histogram_1-1.db", b"\0" * 8), ("counter_2-2.db", b"\xff" * 64)):
        (counting.folder / name).write_bytes(data)
    assert counting.read()['times_total{"kind": "a"}'] == 2
    assert counting.read()['times_total{"kind": "a"}'] == 2


def test_no_room_on_the_disk_ends_no_process(tmp_path: Path) -> None:
    """Reserving fails as on a full disk (a limit of file size here); the process goes on and counts for itself."""
    script = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from korrigo_kit.telemetry.metrics import counter\n"
        "c = counter('times_total', 'Times.', kind=('a',))\nc.labels('a').inc()\nprint(c.labels('a')._value.get())"
    )
    env = {**os.environ, samples.VARIABLE: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1.0"


def test_folders_of_killed_workers_are_swept(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\nfrom korrigo_kit.telemetry import samples\n"
        "print(samples.share_below(pathlib.Path(sys.argv[1])))\nos._exit(9)"
    )
    made = [
        subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False).stdout
        for _ in range(3)
    ]
    assert len(set(made)) == 3
    assert [str(path) for path in tmp_path.iterdir()] == [made[-1].strip()]


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
