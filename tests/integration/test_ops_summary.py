"""GET /api/ops/summary: true figures of a room whose state the test made, for admins and auditors only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from harness.grading_copies import Desk
from harness.grading_room import GradingRoom
from harness.processes import wait_for
from harness.servers import Postgres
from korrigo_grading.domain.statuses import STATUSES
from korrigo_grading.flows import locking
from korrigo_kit import jobs
from korrigo_kit.parts import beat
from korrigo_kit.telemetry import figures

SUMMARY = "/api/ops/summary"


@pytest.fixture
def room(postgres_server: Postgres, tmp_path: Path) -> Iterator[GradingRoom]:
    """A room with a store on this disk."""
    (tmp_path / "blobs").mkdir()
    room = GradingRoom(postgres_server, tmp_path)
    yield room
    room.close()


def _read(room: GradingRoom) -> dict[str, Any]:
    answer = room.log_in().get(SUMMARY)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


def _insert_lock(room: GradingRoom, copy_id: str, owner_id: str, *, silent: int, left: int) -> None:
    with room.rt.db.transaction() as tx:
        tx.run(
            "INSERT INTO copy_locks (copy_id, owner_id, session_id, token_hash, token_prefix, fence, ttl_seconds,"
            " acquired_at, heartbeat_at, expires_at) VALUES (%(copy)s, %(owner)s, 's', 'h', 'p', 1, 1800,"
            " clock_timestamp(), clock_timestamp() - make_interval(secs => %(silent)s),"
            " clock_timestamp() + make_interval(secs => %(left)s))",
            {"copy": copy_id, "owner": owner_id, "silent": silent, "left": left},
        )


def test_an_empty_room_has_every_key_and_zeros(room: GradingRoom, tmp_path: Path) -> None:
    found = _read(room)
    assert {status: entry["count"] for status, entry in found["copies"].items()} == dict.fromkeys(STATUSES, 0)
    assert found["locks"] == {"active": 0, "stale": 0, "expired": 0}
    assert found["finalising"] == {"count": 0, "oldest_seconds": 0}
    assert found["sessions"] == {"open": 1, "people": 1}
    assert found["oldest_due_job_seconds"] == 0
    # Neither ingest nor render runs here, and audit has no address.
    assert found["peers"] == [{"name": name, "is_serving": False} for name in ("ingest", "render", "audit")]
    (volume,) = found["volumes"]
    assert volume["name"] == "blobs"
    assert volume["size_bytes"] == shutil.disk_usage(tmp_path).total > volume["available_bytes"] > 0
    assert found["versions"]["database_schema"] == max(path.name[:4] for path in room.rt.room.migrations.glob("0*.py"))
    assert int(found["versions"]["postgresql"].split(".")[0]) >= 15


def test_it_counts_copies_locks_jobs_events_and_sessions(room: GradingRoom) -> None:
    desk = Desk(room.rt)
    exam_id = desk.exam()
    copies = [desk.stage(exam_id) for _ in range(4)]
    owner = desk.person("marker")
    for copy_id, silent, left in zip(copies, (0, 700, 1900), (1800, 1100, -5), strict=False):
        _insert_lock(room, copy_id, owner.user_id, silent=silent, left=left)
    with room.rt.db.transaction() as tx:
        tx.run(
            "INSERT INTO jobs (id, kind, subject_id, payload, not_before, request_id, traceparent)"
            " VALUES (gen_random_uuid(), 'test', 'x', '{}', clock_timestamp() - interval '90 seconds', 'r', '')"
        )
        tx.run("UPDATE outbox SET sent_at = NULL, created_at = clock_timestamp() - interval '40 seconds'")
        unsent = tx.row("SELECT count(*) AS n FROM outbox")["n"]
    beat(room.rt, "sweeper")
    marker, _ = room.user("somebody", "marker")

    found = _read(room)
    assert {status: entry["count"] for status, entry in found["copies"].items() if entry["count"]} == {"STAGING": 4}
    assert 0 < found["copies"]["STAGING"]["oldest_seconds"] < 120
    assert found["locks"] == {"active": 1, "stale": 1, "expired": 1}
    assert found["jobs"] == jobs.counts(room.rt.db) and sum(found["jobs"]["test"].values()) == 1
    assert 89 <= found["oldest_due_job_seconds"] <= 900
    assert found["outbox"]["count"] >= unsent > 0
    assert 39 <= found["outbox"]["oldest_seconds"] <= 900
    # Two logins of the admin (one of them made the account) and the marker's.
    assert found["sessions"] == {"open": 3, "people": 2}
    assert marker.post("/api/logout").status_code == 204
    assert _read(room)["sessions"]["people"] == 1
    parts = {part["name"]: part["silent_seconds"] for part in found["parts"]}
    assert 0 <= parts["sweeper"] < 30


def _graded(room: GradingRoom, exam_id: str, *, hours_ago: float, seconds: float, state: str = "SUCCEEDED") -> None:
    """Write a copy and the end of its finalisation as they would be found."""
    ended = state == "SUCCEEDED"
    with room.rt.db.transaction() as tx:
        made = tx.row(
            "INSERT INTO copies (id, exam_id, anonymous_id, status, assembly, created_by, graded_at, final_score)"
            " SELECT gen_random_uuid(), %(exam)s, gen_random_uuid()::text, %(status)s, 1, created_by,"
            " clock_timestamp() - make_interval(secs => 3600 * %(ago)s), 12 FROM exams WHERE id = %(exam)s"
            " RETURNING id, created_by",
            {"exam": exam_id, "status": "GRADED" if ended else "GRADING_FAILED", "ago": hours_ago},
        )
        tx.run(
            "INSERT INTO finalisations (id, copy_id, revision, request, state, manifest_sha256, score, max_score,"
            " marker_id, requested_by, final_sha256, final_size, pages, duration_ms, finished_at)"
            " VALUES (gen_random_uuid(), %(copy)s, 1, 1, %(state)s, 'm', 12, 20, %(by)s, %(by)s, 'f', 9, 3,"
            " 1000 * %(seconds)s, clock_timestamp() - make_interval(secs => 3600 * %(ago)s))",
            {"copy": made["id"], "by": made["created_by"], "state": state, "seconds": seconds, "ago": hours_ago},
        )


def test_it_tells_the_pace_of_exams_and_of_final_pdfs(room: GradingRoom) -> None:
    desk = Desk(room.rt)
    open_exam, done_exam = desk.exam(), desk.exam()
    for hours_ago, seconds in ((0.1, 1), (0.5, 2), (0.9, 3), (3, 500)):
        _graded(room, open_exam, hours_ago=hours_ago, seconds=seconds)
    _graded(room, open_exam, hours_ago=0.2, seconds=90, state="FAILED")
    _graded(room, done_exam, hours_ago=0.3, seconds=4)
    for _ in range(5):
        desk.stage(open_exam)
    found = _read(room)
    (exam,) = found["exams"]
    # Ten copies, four of them graded, three within the hour: six are left at three an hour.
    assert exam | {"name": ""} == {
        "exam_id": open_exam, "name": "", "copies": 10, "graded": 4, "graded_last_hour": 3, "remaining_seconds": 7200,
    }  # fmt: skip
    assert found["final_pdfs"] == pytest.approx(
        {"made": 4, "failed": 1, "p50_seconds": 2.5, "p95_seconds": 3.85, "p99_seconds": 3.97}
    )


def test_it_lists_what_fires_the_most_urgent_first(room: GradingRoom) -> None:
    boss = room.log_in()

    def tell(status: str) -> None:
        alerts = [
            {
                "status": status,
                "labels": {"alertname": name, "priority": priority, "severity": "critical", "scenario": "import"},
                "annotations": {"summary": f"It is {name}", "runbook_url": "https://example.org/runbooks/x"},
                "startsAt": "2026-01-12T03:12:00Z",
                "endsAt": "2026-01-12T03:20:00Z",
                "fingerprint": f"{name}-{number}",
            }
            for name, priority, count in (("ImportStuck", "P1", 1), ("WorkersDown", "P0", 2))
            for number in range(count)
        ]
        document = {"version": "4", "groupKey": "{}:{a}", "status": status, "alerts": alerts}
        answer = boss.post("/api/ops/alerts", json=document)
        assert answer.is_success, answer.text

    assert _read(room)["alerts"] == []
    tell("firing")
    found = _read(room)["alerts"]
    assert [(alert["name"], alert["priority"], alert["firing"]) for alert in found] == [
        ("WorkersDown", "P0", 2), ("ImportStuck", "P1", 1)
    ]  # fmt: skip
    assert (found[0]["summary"], found[0]["scenario"]) == ("It is WorkersDown", "import")
    assert found[0]["since"].startswith("2026-01-12T03:12:00") and found[0]["runbook_url"].endswith("/runbooks/x")
    tell("resolved")
    assert _read(room)["alerts"] == []


def test_it_looks_at_the_servers(room: GradingRoom, postgres_server: Postgres) -> None:
    with psycopg.connect(postgres_server.url()) as one, psycopg.connect(postgres_server.url()) as other:
        one.execute("SELECT pg_advisory_lock(4711)")
        waiting = Thread(target=other.execute, args=("SELECT pg_advisory_lock(4711)",))
        waiting.start()
        found = wait_for(
            "a session that waits", lambda: (f := _read(room))["database"]["blocked"] == 1 and f, seconds=20
        )
        database = found["database"]
        # The two, and the one that looks; rooms of other tests may come on top.
        assert 3 <= database["busy"] <= database["connections"] < database["allowed"] == 200
        one.execute("SELECT pg_advisory_unlock(4711)")
        waiting.join(20)
    assert _read(room)["database"]["blocked"] == 0
    # No broker was installed here.
    assert found["broker"] == {"is_up": False, "queues": {}}
    assert 0 <= found["backup_age_seconds"] < 7200


def test_it_lists_what_is_stuck_until_it_is_healed(room: GradingRoom) -> None:
    desk = Desk(room.rt)
    marker = desk.person("marker")
    copy_id = desk.ready(marker)
    locking.acquire(room.rt, marker, copy_id, locking.Wish())
    assert _read(room)["stuck"] == {"copies": 0, "by_reason": {}, "items": []}
    desk.age_lock(copy_id, 1800 + 61)
    found = _read(room)["stuck"]
    assert (found["copies"], found["by_reason"]) == (1, {"lock": {"lock_expired": 1}})
    (item,) = found["items"]
    assert (item["room"], item["subject_type"], item["subject_id"]) == ("grading", "copy", copy_id)
    locking.sweep(room.rt)
    assert _read(room)["stuck"]["copies"] == 0


class Counting:
    """The samples of a process, which counts lock conflicts and a slow failure for each kind of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "path", "status"]
        self._conflicts = Counter("grading_lock_conflicts_total", "c", ["conflict_type"], registry=self.registry)
        self._requests = Counter("http_requests_total", "r", labels, registry=self.registry)
        self._seconds = Histogram(figures.LATENCY, "d", labels, buckets=(1, 4), registry=self.registry)

    def grow(self, **kinds: int) -> None:
        for kind, number in kinds.items():
            self._conflicts.labels(kind).inc(number)
            self._requests.labels("GET", "/api/x", "503").inc(number)
            self._seconds.labels("GET", "/api/x", "503").observe(3)


def test_it_adds_up_what_every_replica_counted_lately(room: GradingRoom) -> None:
    """Two replicas and a worker that write beside their heartbeats; one that is silent takes its figures along."""
    processes = {name: Counting() for name in ("grading:1", "grading:2", "grading-worker:1")}
    processes["grading:1"].grow(expired=5)
    tellers = [
        figures.Teller(room.rt, name.partition(":")[0], counting.registry.collect, process=name)
        for name, counting in processes.items()
    ]
    for teller in tellers:
        teller.tell()
    assert _read(room)["activity"]["lock_conflicts"] == {}, "what was there at the start is not of late"
    processes["grading:1"].grow(expired=1, missing=2)
    processes["grading:2"].grow(expired=3)
    for teller in tellers:
        teller.tell()
    found = _read(room)["activity"]
    assert found["lock_conflicts"] == {"expired": 4, "missing": 2}
    assert (found["processes"], found["ocr_errors"], found["login_failures"]) == (3, {}, 0)
    by_name = {service["name"]: service for service in found["services"]}
    assert by_name["grading"] == {
        "name": "grading", "replicas": 2, "requests": 6, "server_errors": 6, "p95_seconds": pytest.approx(3.85),
    }  # fmt: skip
    assert by_name["grading-worker"]["p95_seconds"] is None
    # Nobody but grading runs here: that their figures are missing is told, not hidden behind zeros.
    assert found["unheard"] == ["ingest", "render", "audit"]
    assert not [part for part in _read(room)["parts"] if part["name"].startswith("figures")]
    with room.rt.db.transaction() as tx:
        tx.run("UPDATE heartbeats SET beat_at = now() - interval '46 seconds' WHERE name LIKE '%%grading:1'")
    assert _read(room)["activity"]["lock_conflicts"] == {"expired": 3}


@pytest.mark.parametrize("role", ["scan_operator", "marker", "lead_marker", "student"])
def test_others_are_refused(room: GradingRoom, role: str) -> None:
    client, _ = room.user(f"a-{role}", role)
    answer = client.get(SUMMARY)
    assert (answer.status_code, answer.json()["reason"]) == (403, "FORBIDDEN")


def test_an_auditor_may_look_and_nobody_else_may_not(room: GradingRoom) -> None:
    auditor, _ = room.user("eye", "auditor")
    assert auditor.get(SUMMARY).status_code == 200
    assert room.anonymous().get(SUMMARY).status_code == 401
