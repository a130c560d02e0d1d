"""What a marker at work costs: CPU of each part for one request, and rows and objects for one copy.

For the calculation in docs/guides/sizing.md. Processes and servers as in production; the corpus' scans of 12 pages are
cut into copies of four, each is locked, looked at, annotated twenty times, scored and finalised by one client that
does not pause. CPU is counted by the processes, so a busy machine changes little; there is no gate.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import psycopg
import pytest

from harness.client import Client
from harness.corpora import CORPORA
from harness.processes import descendants
from harness.production import Production
from harness.servers import S3, Postgres, RabbitMQ

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]
SCANS = 8
PAGES_A_COPY = 4
ANNOTATIONS = 20
HEARTBEATS = 4
SIZES = """SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relkind = 'r' AND n.nspname IN ('ingest', 'grading', 'render', 'audit')"""


def _cpu(pid: int) -> float:
    """Return the CPU seconds that a process, what lives below it and what it has outlived have used."""
    total = 0.0
    for member in [psutil.Process(pid), *descendants(pid)]:
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class _Meter:
    """CPU seconds by part, since the last look."""

    def __init__(self, running: Production, postgres: Postgres) -> None:
        self._pids = {name: kept.child.pid for name, kept in running.keeper.kept.items() if name != "gateway"}
        self._pids["postgresql"] = postgres.pid
        self._last = self._now()

    def _now(self) -> dict[str, float]:
        return {name: _cpu(pid) for name, pid in self._pids.items()}

    def passed(self) -> dict[str, float]:
        now, before = self._now(), self._last
        self._last = now
        return {name: now[name] - before[name] for name in now}


def test_what_a_marker_costs(postgres_server: Postgres, rabbitmq_server: RabbitMQ, s3_server: S3) -> None:
    scan = CORPORA / "scans" / "a4" / "12_plain_12_pages.pdf"
    if not scan.exists():
        pytest.skip("CORPORA MISSING: ../shared is not beside this checkout")
    with Production(postgres_server, rabbitmq_server, s3_server) as running:
        assert isinstance(running, Production)
        with Client(running.url, patience_seconds=30) as client:
            client.login("admin", running.admin_password)
            copies = [copy for number in range(SCANS) for copy in _import(client, scan, number)]
            _mark(client, copies[0])  # the first of everything is not the rule
            with psycopg.connect(running.database_url) as connection:
                before = connection.execute(SIZES).fetchone()
                meter = _Meter(running, postgres_server)
                answers: list[int] = []
                client.http.event_hooks["response"].append(lambda answer: answers.append(answer.status_code))
                for copy in copies[1:]:
                    _mark(client, copy)
                spent = meter.passed()
                connection.rollback()
                after = connection.execute(SIZES).fetchone()
    assert before and after
    marked, requests = len(copies) - 1, len(answers)
    print(
        f"\n{marked} copies of {PAGES_A_COPY} pages, {ANNOTATIONS} annotations, {requests / marked:.0f} requests each"
    )
    for name, seconds in sorted(spent.items(), key=lambda part: -part[1]):
        a_request, a_copy = 1000 * seconds / requests, 1000 * seconds / marked
        print(f"{name:14} {a_request:7.2f} ms of a core a request, {a_copy:6.0f} ms a copy")
    print(f"scan           {scan.stat().st_size / 12 / 1000:7.0f} kB a page")
    print(f"database       {(after[0] - before[0]) / marked / 1000:7.1f} kB a copy")


def _import(client: Client, scan: Path, number: int) -> list[str]:
    exam = client.create_exam(f"Costs {number}", questions={"q1": 10, "q2": 10}, pages_per_booklet=PAGES_A_COPY)
    found = client.wait_scan(client.upload(exam["id"], scan)["scan_id"])
    assert found["state"] == "DONE", found
    for copy_id in found["copy_ids"]:
        client.wait_copy(copy_id, ["READY"])
    return [str(copy_id) for copy_id in found["copy_ids"]]


def _mark(client: Client, copy_id: str) -> None:
    """Do what a marker does to one copy, as fast as it goes."""
    lock = client.lock(copy_id)
    pages = client.copy(copy_id)["pages"]
    for page in pages:
        client.page_image(page)
    for number in range(ANNOTATIONS):
        client.annotate(lock, page_index=number % len(pages), y=0.04 * number + 0.05, content="well said")
    for _ in range(HEARTBEATS):
        client.heartbeat(lock)
    client.put_scores(lock, {"q1": 7.5, "q2": 8}, "Good work")
    client.finalize(lock)
    client.wait_graded(copy_id)
