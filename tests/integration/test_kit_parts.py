"""Kit as its rooms meet it: relay, sweeper, worker and broker around one toy room, killed and wiped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness import toy_room
from harness.servers import Postgres, RabbitMQ
from korrigo_kit import jobs, outbox, pgmq
from korrigo_kit.broker import EventPublisher
from korrigo_kit.ids import uuid7
from korrigo_kit.migrate import Plan, connect, migrate
from korrigo_kit.room import Process, Runtime
from korrigo_kit.settings import load
from korrigo_kit.stuck import WORKER_PREFIX, WORKER_SILENCE_SECONDS
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.grading.v1 import events_pb2

TESTS = Path(__file__).resolve().parents[1]


class Toy:
    """The toy room's processes on real servers."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self.environ = dict(environ)
        self.folder = folder
        self.settings = load(environ=environ)
        migrate(self.settings.database, [Plan("render", toy_room.ROOM.migrations)])
        with connect(self.settings.database) as connection:
            pgmq.install(connection, self.settings.database)
        self.runtime: Runtime = Process.build([toy_room.ROOM], self.settings).runtimes["render"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, what: str) -> subprocess.Popen[bytes]:
        ready = self.folder / f"{what}-{len(self.processes)}.ready"
        with (self.folder / f"{what}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "harness.toy_room", what, str(ready)],
                env={**os.environ, **self.environ, "PYTHONPATH": str(TESTS)},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        wait_until(ready.exists, 30, lambda: (self.folder / f"{what}.log").read_text()[-3000:])
        return process

    def enqueue(self, count: int = 1, **payload: Any) -> list[str]:
        with self.runtime.db.transaction() as tx:
            return [jobs.enqueue(tx, kind="toy", subject_id=f"s{n}", payload=payload) for n in range(count)]

    def count(self, sql: str) -> int:
        with self.runtime.db.transaction() as tx:
            return int(tx.row(f"SELECT count(*) AS n FROM {sql}")["n"])

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.runtime.close()


def wait_until(check: Callable[[], bool], seconds: float, tell: Callable[[], object] = lambda: "") -> None:
    """Poll until something holds, or fail with what `tell` says."""
    ends_at = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < ends_at, f"did not happen within {seconds} s: {tell()}"
        time.sleep(0.05)


@pytest.fixture(params=["pgmq", "amqp"])
def toy(request: pytest.FixtureRequest, postgres_server: Postgres, tmp_path: Path) -> Iterator[Toy]:
    """The toy room on the embedded broker and on RabbitMQ."""
    broker = "pgmq://" if request.param == "pgmq" else request.getfixturevalue("rabbitmq_server").url
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    toy = Toy(
        {
            "KORRIGO_DATABASE__URL": postgres_server.url(postgres_server.create_database("toy")),
            "KORRIGO_BROKER__URL": broker,
            "KORRIGO_RPC__SECRET": "only for this test, 32 characters",
            "KORRIGO_RPC__RENDER": f"unix:{tmp_path}/render.sock",
            "KORRIGO_HTTP__PORT": "0",
            "KORRIGO_AUTH__SIGNING_KEY": key.decode(),
            "KORRIGO_JOBS__LEASE_SECONDS": "3",
            "KORRIGO_JOBS__HEARTBEAT_SECONDS": "1",
            "KORRIGO_JOBS__SWEEP_SECONDS": "1",
            "KORRIGO_JOBS__BACKOFF_SECONDS": "0.2",
        },
        tmp_path,
    )
    yield toy
    toy.stop()


def test_jobs_are_done_once_and_events_heard_in_order(toy: Toy) -> None:
    """A hundred jobs, then every event of them, each exactly once."""
    toy.start("api,relay,sweeper")
    toy.start("work")
    toy.enqueue(100)
    wait_until(lambda: toy.count("done") == 100, 60)
    wait_until(lambda: toy.count("heard") == 100, 20)
    assert toy.count("jobs WHERE state = 'DONE' AND attempts = 0") == 100


def test_failures_end_in_named_states(toy: Toy) -> None:
    """A refusal fails at once, a crash is tried three times, a dead worker is replaced and counted apart."""
    toy.start("api,relay,sweeper")
    toy.start("work")
    toy.enqueue(do="refuse")
    wait_until(lambda: toy.count("jobs WHERE state = 'FAILED' AND attempts = 1") == 1, 20)
    toy.enqueue(do="crash")
    wait_until(lambda: toy.count("jobs WHERE state = 'QUARANTINED' AND attempts = 3") == 1, 30)
    assert toy.count("failed WHERE reason = 'BUG'") == 3
    assert toy.count("failed WHERE reason = 'BUG' AND is_final") == 1
    toy.enqueue(do="die once")
    wait_until(lambda: toy.count("jobs WHERE state = 'DONE' AND lost_leases = 1 AND attempts = 0") == 1, 40)


def test_a_killed_worker_and_a_killed_relay_lose_nothing(toy: Toy) -> None:
    """SIGKILL of worker, children and relay under load; everything is done once in the end."""
    toy.start("api")
    relay = toy.start("relay,sweeper")
    worker = toy.start("work")
    toy.enqueue(40, do="sleep", seconds=0.1)
    wait_until(lambda: toy.count("done") >= 5, 30)
    for child in psutil.Process(worker.pid).children(recursive=True):
        child.kill()
    worker.kill()
    relay.kill()
    toy.start("relay,sweeper")
    toy.start("work")
    wait_until(lambda: toy.count("done") == 40, 60)
    wait_until(lambda: toy.count("heard") == 40, 30)


def test_events_that_the_broker_never_brought_are_fetched(toy: Toy) -> None:
    """Rows marked as sent that no broker ever saw: the consumer asks for them, the last one included."""
    toy.start("api")
    with toy.runtime.db.transaction() as tx:
        for _ in range(7):
            outbox.emit(tx, type="lost", subject=("system", "x"), payload=events_pb2.Recorded())
        tx.run("UPDATE outbox SET sent_at = clock_timestamp()")
    toy.start("work")
    wait_until(lambda: toy.count("heard") == 7, 30)
    with toy.runtime.db.transaction() as tx:
        assert [row["source_seq"] for row in tx.all("SELECT source_seq FROM heard ORDER BY n")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_wiped_broker_loses_nothing(toy: Toy, request: pytest.FixtureRequest) -> None:
    """Everything queued is thrown away; bells are rung again and events fetched."""
    toy.start("api,relay,sweeper")
    worker = toy.start("work")
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    toy.enqueue(20)
    wait_until(lambda: toy.count("jobs WHERE rung_at IS NOT NULL") == 20, 20)
    _wipe(toy, request)
    toy.start("work")
    wait_until(lambda: toy.count("done") == 20, 180)
    wait_until(lambda: toy.count("heard") == 20, 30)


def test_an_event_of_another_installation_is_dropped(toy: Toy) -> None:
    """Two installations on one virtual host, or somebody who got hold of the broker: neither writes here."""
    toy.start("api,relay,sweeper")
    toy.start("work")
    toy.enqueue(1)
    wait_until(lambda: toy.count("heard") == 1, 30)
    foreign = load(environ=toy.environ | {"KORRIGO_RPC__SECRET": "of another installation, 32 characters"})
    stream = event_pb2.Stream(subject_type="copy", subject_id=str(uuid7()))
    event = event_pb2.Event(id=str(uuid7()), type="forged", stream=stream, source="render", source_seq=1)
    publisher = EventPublisher(foreign)
    publisher.publish([event])
    publisher.close()
    log = toy.folder / "work.log"
    wait_until(lambda: "FOREIGN_EVENT" in log.read_text(), 30, log.read_text)
    toy.enqueue(1)
    wait_until(lambda: toy.count("heard") == 2, 30)
    assert toy.count("heard WHERE event_id = '" + event.id + "'") == 0


def _wipe(toy: Toy, request: pytest.FixtureRequest) -> None:
    if toy.environ["KORRIGO_BROKER__URL"].startswith("pgmq"):
        with connect(toy.settings.database) as connection:
            for (name,) in connection.execute("SELECT queue_name FROM pgmq.meta").fetchall():
                connection.execute("SELECT pgmq.purge_queue(%s)", (name,))
    else:
        rabbit: RabbitMQ = request.getfixturevalue("rabbitmq_server")
        rabbit.wipe()


def test_a_worker_that_has_a_lot_to_catch_up_is_no_dead_one(toy: Toy) -> None:
    """After a long outage there is more to fetch than fits between two beats (alert WorkersDown)."""
    missed = WORKER_SILENCE_SECONDS + 3
    toy.environ["TOY_HEARS_SECONDS"] = "1"
    toy.start("api")
    with toy.runtime.db.transaction() as tx:
        for number in range(missed):
            outbox.emit(tx, type="job_done", subject=("system", f"missed-{number}"), payload=events_pb2.Recorded())
    toy.start("work")
    beats = f"heartbeats WHERE name LIKE '{WORKER_PREFIX}%'"
    wait_until(lambda: toy.count(beats) == 1, 30)
    assert toy.count("heard") < missed
    silent = f"{beats} AND beat_at < clock_timestamp() - interval '{WORKER_SILENCE_SECONDS} seconds'"

    def is_all_heard() -> bool:
        assert toy.count(silent) == 0
        return toy.count("heard") == missed

    wait_until(is_all_heard, 90)
