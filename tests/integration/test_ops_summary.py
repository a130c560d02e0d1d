"""GET /api/ops/summary: true figures of a room whose state the test made, for admins and auditors only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.grading_copies import Desk
from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_grading.domain.statuses import STATUSES
from korrigo_kit import jobs
from korrigo_kit.parts import beat

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
    assert 89 <= found["oldest_due_job_seconds"] <= 120
    assert found["outbox"]["count"] >= unsent > 0
    assert 39 <= found["outbox"]["oldest_seconds"] <= 70
    # Two logins of the admin (one of them made the account) and the marker's.
    assert found["sessions"] == {"open": 3, "people": 2}
    assert marker.post("/api/logout").status_code == 204
    assert _read(room)["sessions"]["people"] == 1
    parts = {part["name"]: part["silent_seconds"] for part in found["parts"]}
    assert 0 <= parts["sweeper"] < 30


@pytest.mark.parametrize("role", ["scan_operator", "marker", "lead_marker", "student"])
def test_others_are_refused(room: GradingRoom, role: str) -> None:
    client, _ = room.user(f"a-{role}", role)
    answer = client.get(SUMMARY)
    assert (answer.status_code, answer.json()["reason"]) == (403, "FORBIDDEN")


def test_an_auditor_may_look_and_nobody_else_may_not(room: GradingRoom) -> None:
    auditor, _ = room.user("eye", "auditor")
    assert auditor.get(SUMMARY).status_code == 200
    assert room.anonymous().get(SUMMARY).status_code == 401
