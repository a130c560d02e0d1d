"""Each cause that rows, locks, logs or addresses can show is put there and named first; without it, none is named.

Processes, full disks and a real broker are broken by the drills (`make drill`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime

import psycopg
import pytest

from harness.processes import free_port, wait_for
from harness.servers import Postgres
from harness.whole_rooms import WholeRooms
from korrigo.doctor.names import SCENARIOS
from korrigo_kit import outbox
from korrigo_kit.ids import new_id
from korrigo_protos.grading.v1.events_pb2 import Recorded

SHA = "ab" * 32


@pytest.fixture(scope="module")
def rooms(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeRooms]:
    """One installation for all; every injection is undone."""
    made = WholeRooms(postgres_server, tmp_path_factory.mktemp("whole"))
    made.well()
    made.drain()
    yield made
    made.close()


# ---------------------------------------------------------------------------------------------- what is put there
def _scan(rooms: WholeRooms, state: str, reason: str, job_state: str) -> None:
    scan, job = new_id(), new_id()
    rooms.sql(
        "INSERT INTO ingest.jobs (id, kind, subject_id, payload, state, attempts, error_reason, request_id,"
        " traceparent, finished_at) VALUES (%s, 'import', %s, '{}', %s, 1, %s, 'r', '', clock_timestamp())",
        job, scan, job_state, reason,
    )  # fmt: skip
    rooms.sql(
        "INSERT INTO ingest.scans (id, exam_id, state, filename, sha256, size, split_mode, pages_per_booklet,"
        " split_horizontal, uploaded_by, job_id, error_reason, error_message, finished_at)"
        " VALUES (%s, %s, %s, 'x.pdf', %s, 9, 'A4_single', 0, true, %s, %s, %s, 'said so', clock_timestamp())",
        scan, new_id(), state, SHA, new_id(), job, reason,
    )  # fmt: skip


def _copy(rooms: WholeRooms, status: str, reason: str | None = None) -> str:
    exam, copy = new_id(), new_id()
    owner = rooms.sql("SELECT id FROM grading.users WHERE is_system")[0][0]
    rooms.sql(
        "INSERT INTO grading.exams (id, name, date, split_mode, pages_per_booklet, split_horizontal,"
        " grading_structure, max_score, auto_validate, created_by)"
        " VALUES (%s, 'e', '2026-01-12', 'A4_single', 0, true, '[]', 20, true, %s)",
        exam, owner,
    )  # fmt: skip
    rooms.sql(
        "INSERT INTO grading.copies (id, exam_id, anonymous_id, status, assembly, created_by, grading_retries)"
        " VALUES (%s, %s, %s, %s, 1, %s, 3)",
        copy, exam, copy[:8] + copy[-8:], status, owner,
    )  # fmt: skip
    if reason:
        rooms.sql(
            "INSERT INTO grading.finalisations (id, copy_id, revision, request, state, manifest_sha256, score,"
            " max_score, marker_id, requested_by, error_reason) VALUES (%s, %s, 1, 1, 'FAILED', %s, 1, 2, %s, %s, %s)",
            new_id(), copy, SHA, owner, owner, reason,
        )  # fmt: skip
    return copy


def _lock(rooms: WholeRooms, *, silent: int, left: int, is_written: bool = False) -> None:
    copy = _copy(rooms, "LOCKED")
    owner = new_id()
    rooms.sql(
        "INSERT INTO grading.copy_locks (copy_id, owner_id, session_id, token_hash, token_prefix, fence, ttl_seconds,"
        " acquired_at, heartbeat_at, expires_at) VALUES (%s, %s, 's', 'h', 'p', 1, 1800, clock_timestamp(),"
        " clock_timestamp() - make_interval(secs => %s), clock_timestamp() + make_interval(secs => %s))",
        copy, owner, silent, left,
    )  # fmt: skip
    if is_written:
        _annotation(rooms, copy, owner)


def _annotation(rooms: WholeRooms, copy: str, owner: str) -> None:
    rooms.sql(
        "INSERT INTO grading.annotations (copy_id, id, marking, page_id, x, y, w, h, type, fence, created_by)"
        " VALUES (%s, %s, 1, %s, 0.1, 0.1, 0.2, 0.2, 'COMMENT', 1, %s)",
        copy, new_id(), new_id(), owner,
    )  # fmt: skip


def _say(rooms: WholeRooms, message: str, reason: str, times: int = 1) -> None:
    line = {"timestamp": datetime.now(UTC).isoformat(), "level": "WARNING", "service": "grading", "message": message,
            "reason": reason, "copy_id": new_id()}  # fmt: skip
    with (rooms.folder / "logs" / "grading.log").open("a") as file:
        for number in range(times):
            file.write(json.dumps(line | {"line": number}) + "\n")


def _tell(rooms: WholeRooms, *, is_stored: bool = True) -> str:
    """Write an event that audit stores."""
    copy = _copy(rooms, "STAGING")
    for number in range(3):
        with rooms["ingest"].db.transaction() as tx:
            outbox.emit(tx, type="recorded", subject=("copy", copy), payload=Recorded(), action="IMPORT",
                        metadata={"number": number})  # fmt: skip
    if is_stored:
        rooms.drain()
    return copy


def _lose(rooms: WholeRooms) -> None:
    rooms.sql("DELETE FROM audit.records WHERE subject_id = %s AND source_seq = 2", _tell(rooms))


def _forge(rooms: WholeRooms) -> None:
    rooms.sql("UPDATE audit.records SET metadata = '{}' WHERE subject_id = %s AND source_seq = 2", _tell(rooms))


def _undrained(rooms: WholeRooms) -> None:
    rooms.sql(
        "UPDATE ingest.outbox SET sent_at = NULL, created_at = clock_timestamp() - interval '90 seconds'"
        " WHERE subject_id = %s", _tell(rooms),
    )  # fmt: skip


def _backlog(rooms: WholeRooms) -> None:
    rooms.sql(
        "INSERT INTO render.jobs (id, kind, subject_id, payload, not_before, request_id, traceparent)"
        " SELECT gen_random_uuid(), 'render', 'x', '{}', clock_timestamp() - interval '5 minutes', 'r', ''"
        " FROM generate_series(1, 120)"
    )


def _rejected(rooms: WholeRooms) -> None:
    _scan(rooms, "REJECTED", "CORRUPTED_PDF", "FAILED")


def _timed_out(rooms: WholeRooms) -> None:
    _scan(rooms, "FAILED", "TIMEOUT", "QUARANTINED")


def _rolled_back(rooms: WholeRooms) -> None:
    _scan(rooms, "FAILED", "BUG", "QUARANTINED")


def _silent(part: str) -> Callable[[WholeRooms], None]:
    def put(rooms: WholeRooms) -> None:
        rooms.sql(
            "UPDATE render.heartbeats SET beat_at = clock_timestamp() - interval '10 minutes' WHERE name LIKE %s",
            f"{part}%",
        )

    return put


def _failed(reason: str) -> Callable[[WholeRooms], None]:
    def put(rooms: WholeRooms) -> None:
        _copy(rooms, "GRADING_FAILED", reason)

    return put


def _locked(**how: int | bool) -> Callable[[WholeRooms], None]:
    def put(rooms: WholeRooms) -> None:
        _lock(rooms, **how)  # type: ignore[arg-type]

    return put


def _said(message: str, reason: str, times: int = 1) -> Callable[[WholeRooms], None]:
    def put(rooms: WholeRooms) -> None:
        _say(rooms, message, reason, times)

    return put


def _outside(rooms: WholeRooms) -> None:
    _annotation(rooms, _copy(rooms, "READY"), new_id())


def _unwatched(rooms: WholeRooms) -> None:
    rooms.sql("INSERT INTO grading.heartbeats (name, beat_at) VALUES ('watchdog', now() - interval '16 minutes')")


def _old_backup(rooms: WholeRooms) -> None:
    rooms.sql("INSERT INTO grading.heartbeats (name, beat_at) VALUES ('backup', now() - interval '27 hours')")


def _no_folder(rooms: WholeRooms) -> None:
    (rooms.folder / "blobs").rename(rooms.folder / "blobs.away")


INJECTED: dict[str, tuple[str, Callable[[WholeRooms], None]]] = {
    "corrupted-pdf": ("import-stuck", _rejected),
    "import-timeout": ("import-stuck", _timed_out),
    "import-rolled-back": ("import-stuck", _rolled_back),
    "worker-down": ("import-stuck", _silent("worker")),
    "render-error": ("finalization-failing", _failed("SOURCE_UNREADABLE")),
    "missing-page": ("finalization-failing", _failed("BLOB_NOT_FOUND")),
    "out-of-memory": ("finalization-failing", _failed("RESOURCE_LIMIT")),
    "retries-exhausted": ("finalization-failing", _failed("")),
    "annotation-out-of-page": ("finalization-failing", _outside),
    "expired-lock": ("lock-conflicts", _locked(silent=2000, left=-120)),
    "browser-crash": ("lock-conflicts", _locked(silent=400, left=1400)),
    "heartbeat-loss": ("lock-conflicts", _locked(silent=400, left=1400, is_written=True)),
    "token-mismatch": ("lock-conflicts", _said("Lock token mismatch: Invalid lock token", "INVALID_LOCK_TOKEN")),
    "concurrent-finalize": (
        "lock-conflicts",
        _said("Copy x already graded (concurrent finalization detected) - rejecting duplicate request", ""),
    ),
    "contested-copy": ("lock-conflicts", _said("Lock conflict: Copy is locked by another user", "LOCK_HELD", 6)),
    "queue-backlog": ("high-latency", _backlog),
    "missing-event": ("missing-audit-events", _lose),
    "audit-chain-broken": ("missing-audit-events", _forge),
    "outbox-undrained": ("missing-audit-events", _undrained),
    "object-store-down": ("storage", _no_folder),
    "backup-too-old": ("storage", _old_backup),
    "sweeper-stale": ("monitoring", _silent("swept")),
    "alerting-silent": ("monitoring", _unwatched),
}


def _undo(rooms: WholeRooms) -> None:
    rooms.sql("TRUNCATE ingest.scans, ingest.jobs, render.jobs, grading.annotations, grading.finalisations,"
              " grading.copy_locks, grading.copies, grading.exams CASCADE")  # fmt: skip
    for room in ("ingest", "grading", "render", "audit"):
        rooms.sql(f"TRUNCATE {room}.outbox, {room}.streams, {room}.inbox, {room}.inbox_looks")
    rooms.sql("TRUNCATE audit.records, audit.record_heads")
    rooms.sql("DELETE FROM grading.heartbeats WHERE name IN ('backup', 'watchdog')")
    (rooms.folder / "logs" / "grading.log").unlink(missing_ok=True)
    if (rooms.folder / "blobs.away").exists():
        (rooms.folder / "blobs.away").rename(rooms.folder / "blobs")


def _named(rooms: WholeRooms, scenario: str, **changed: str) -> list[str]:
    (found,) = rooms.diagnose(scenario, **changed)
    return [cause.cause for cause in found.causes]


# ---------------------------------------------------------------------------------------------- the tests
def test_a_healthy_installation_has_no_cause(rooms: WholeRooms) -> None:
    rooms.well()
    found = rooms.diagnose(*SCENARIOS)
    assert {one.scenario: [cause.cause for cause in one.causes] for one in found} == {name: [] for name in SCENARIOS}
    unknown = {item["cause"] for one in found for item in one.checked if item["result"] != "absent"}
    # nobody watches this installation; everything else was looked at
    assert unknown == {"alertmanager-down", "prometheus-down"}


@pytest.mark.parametrize("slug", INJECTED)
def test_what_is_put_there_is_named_first(rooms: WholeRooms, slug: str) -> None:
    scenario, put = INJECTED[slug]
    rooms.well()
    put(rooms)
    try:
        (found,) = rooms.diagnose(scenario)
        assert found.causes and found.causes[0].cause == slug, [one.cause for one in found.causes]
        first = found.causes[0]
        assert 0 < first.certainty <= 1 and all(first.evidence) and first.remedies
        told = found.as_json()
        assert told["healthy"] is False and told["causes"][0]["cause"] == slug
        json.dumps(told)
    finally:
        _undo(rooms)
    rooms.well()
    assert _named(rooms, scenario) == []


@contextmanager
def _slow(rooms: WholeRooms) -> Iterator[None]:
    with psycopg.connect(rooms.url, autocommit=True) as connection:
        thread = threading.Thread(target=_run, args=(connection, "SELECT pg_sleep(60)"))
        thread.start()
        yield
        connection.cancel()
        thread.join(10)


def _run(connection: psycopg.Connection[object], statement: str) -> None:
    with suppress(psycopg.Error):  # it is ended at the end of its test
        connection.execute(statement.encode())


@contextmanager
def _held(rooms: WholeRooms) -> Iterator[None]:
    with ExitStack() as stack:
        holder = stack.enter_context(psycopg.connect(rooms.url))
        holder.execute("LOCK TABLE grading.copies IN ACCESS EXCLUSIVE MODE")
        waiter = stack.enter_context(psycopg.connect(rooms.url, autocommit=True))
        thread = threading.Thread(target=_run, args=(waiter, "SELECT count(*) FROM grading.copies"))
        thread.start()
        yield
        holder.rollback()
        thread.join(10)


@pytest.mark.parametrize(("slug", "made"), [("slow-query", _slow), ("lock-contention", _held)])
def test_a_busy_database_is_seen(
    rooms: WholeRooms, slug: str, made: Callable[[WholeRooms], AbstractContextManager[None]]
) -> None:
    with made(rooms):
        wait_for(slug, lambda: _named(rooms, "high-latency")[:1] == [slug], seconds=30)
        (found,) = rooms.diagnose("database")
        assert slug in [cause.cause for cause in found.causes]
    rooms.well()
    assert _named(rooms, "high-latency") == []


def test_a_silent_room_is_named(rooms: WholeRooms) -> None:
    rooms.well()
    rooms.hush("render")
    try:
        (found,) = rooms.diagnose("web")
        assert found.causes[0].cause == "room-down" and "render" in found.causes[0].evidence[0]
    finally:
        rooms.serve("render")


@pytest.mark.parametrize(
    ("slug", "scenario", "variable", "value"),
    [
        ("broker-down", "broker", "KORRIGO_BROKER__URL", "amqp://a:b@127.0.0.1:{port}//"),
        ("alertmanager-down", "monitoring", "KORRIGO_MONITORING__ALERTMANAGER_URL", "http://127.0.0.1:{port}"),
        ("prometheus-down", "monitoring", "KORRIGO_MONITORING__PROMETHEUS_URL", "http://127.0.0.1:{port}"),
    ],
)
def test_a_part_that_nobody_answers_for_is_named(
    rooms: WholeRooms, slug: str, scenario: str, variable: str, value: str
) -> None:
    rooms.well()
    assert _named(rooms, scenario, **{variable: value.format(port=free_port())})[0] == slug


def test_without_a_database_that_is_the_cause_everywhere_and_nothing_is_made_up(rooms: WholeRooms) -> None:
    url = f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/x"
    for found in rooms.diagnose(*SCENARIOS, KORRIGO_DATABASE__URL=url):
        assert [cause.cause for cause in found.causes] == ["database-down"], found.scenario
        assert "unknown" in {item["result"] for item in found.checked}


def test_looking_changes_nothing(rooms: WholeRooms) -> None:
    rooms.well()
    _tell(rooms)
    tables = rooms.sql(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN"
        " ('ingest', 'grading', 'render', 'audit') ORDER BY 1"
    )

    def state() -> dict[str, object]:
        rows = "SELECT count(*), md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {} t"
        return {name: rooms.sql(rows.format(name)) for (name,) in tables}

    try:
        before = state()
        rooms.diagnose(*SCENARIOS)
        assert state() == before
    finally:
        _undo(rooms)
