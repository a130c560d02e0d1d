"""One machine heals by the operator's policies: what passes is healed, what needs a person is left, nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from harness import many_copies
from harness.grading_copies import Desk
from harness.servers import Postgres
from harness.whole_rooms import WholeRooms
from korrigo import healing, rooms
from korrigo_grading.flows import locking
from korrigo_kit import operations
from korrigo_kit.ids import new_id
from korrigo_kit.interventions import OPERATOR, Asked
from korrigo_kit.outbox import OPERATOR_ACTOR
from korrigo_kit.room import Runtime
from korrigo_kit.rpc import Channels


@pytest.fixture(scope="module")
def whole(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeRooms]:
    """One installation."""
    made = WholeRooms(postgres_server, tmp_path_factory.mktemp("healing"))
    yield made
    made.close()


def _runtimes(whole: WholeRooms) -> dict[str, Runtime]:
    return {name: whole[name] for name in rooms.NAMES}


def _scan(whole: WholeRooms, reason: str, minutes: int) -> str:
    scan, job = new_id(), new_id()
    whole.sql(
        "INSERT INTO ingest.jobs (id, kind, subject_id, payload, state, attempts, error_reason, request_id,"
        " traceparent, finished_at) VALUES (%s, 'import', %s, '{}', 'QUARANTINED', 3, %s, 'r', '',"
        " clock_timestamp() - make_interval(mins => %s))",
        job, scan, reason, minutes,
    )  # fmt: skip
    whole.sql(
        "INSERT INTO ingest.scans (id, exam_id, state, filename, sha256, size, split_mode, pages_per_booklet,"
        " split_horizontal, uploaded_by, job_id, error_reason) VALUES (%s, %s, 'FAILED', 'x.pdf', %s, 9,"
        " 'A4_single', 0, true, %s, %s, %s)",
        scan, new_id(), "ab" * 32, new_id(), job, reason,
    )  # fmt: skip
    return scan


def _state(whole: WholeRooms, scan: str) -> str:
    return str(whole.sql("SELECT state FROM ingest.jobs WHERE subject_id = %s", scan)[0][0])


def test_what_passes_is_healed_once_and_the_rest_is_left(whole: WholeRooms) -> None:
    desk = Desk(whole["grading"])
    marker = desk.person("marker")
    copy_id = desk.ready(marker)
    locking.acquire(whole["grading"], marker, copy_id, locking.Wish())
    whole.sql("DELETE FROM grading.copy_locks WHERE copy_id = %s", copy_id)
    whole.sql("UPDATE grading.copies SET updated_at = updated_at - interval '1 hour' WHERE id = %s", copy_id)
    passing, fresh, hopeless = _scan(whole, "TIMEOUT", 60), _scan(whole, "TIMEOUT", 5), _scan(whole, "BUG", 60)

    # two sweepers at once: the uid of an act follows from the facts
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: healing.heal(_runtimes(whole)), range(2)))

    assert desk.copy(copy_id)["status"] == "READY"
    assert (_state(whole, passing), _state(whole, fresh), _state(whole, hopeless)) == (
        "READY", "QUARANTINED", "QUARANTINED",
    )  # fmt: skip
    for room, action in (("ingest", "RetryImport"), ("grading", "ReleaseExpiredLocks")):
        acts = whole.sql(f"SELECT action FROM {room}.interventions WHERE actor_id = %s", OPERATOR_ACTOR)
        assert acts == [(action,)]
    told = whole.sql(
        "SELECT convert_from(leaf, 'UTF8')::jsonb->>'actor_id' FROM ingest.outbox WHERE action = 'INTERVENTION'"
    )
    assert told == [(OPERATOR_ACTOR,)]
    assert healing.heal(_runtimes(whole)) == 0


def test_the_rooms_tell_what_was_tried_and_how_they_are(whole: WholeRooms) -> None:
    """Whoever heals next, after a restart or on another node, goes on from what the rooms remember."""
    scan = _scan(whole, "TIMEOUT", 60)
    healing.heal(_runtimes(whole))
    whole.sql(
        "UPDATE ingest.jobs SET state = 'QUARANTINED', finished_at = clock_timestamp(), error_reason = 'TIMEOUT'"
        " WHERE subject_id = %s",
        scan,
    )
    channels = Channels(whole.settings.rpc, "operator")
    try:
        items, counts = operations.list_and_count(channels, "ingest", seconds=30)
        (item,) = [found for found in items if found.subject_id == scan]
        assert item.tried == 1
        assert item.tried_at is not None
        assert item.exam_id
        assert counts["import", "retries_exhausted"] == len(items)
        vitals = operations.get_vitals(channels, "ingest", seconds=30)
        assert vitals.acts_last_hour >= 1
        assert vitals.acts_failed == 0
        assert vitals.acted_at is not None
        assert abs(vitals.acted_at - item.tried_at) < timedelta(milliseconds=1)
        assert vitals.acts_unproven == 0, "what was tried for the first time counts when it is stuck again"
        assert vitals.outbox_waiting >= 1
        assert vitals.outbox_oldest_seconds > 0
        # tried again, and not stuck meanwhile: only the room knows that it is on trial
        order = Asked(new_id(), "RetryImport", "scan", scan, "because", actor=OPERATOR)
        assert operations.intervene(channels, order, seconds=30).affected == 1
        assert scan not in [found.subject_id for found in operations.list_stuck(channels, "ingest", seconds=30)]
        assert operations.get_vitals(channels, "ingest", seconds=30).acts_unproven == 1
        whole.sql("UPDATE ingest.interventions SET created_at = created_at - interval '121 seconds'")
        assert operations.get_vitals(channels, "ingest", seconds=30).acts_unproven == 0
    finally:
        channels.close()


def test_what_is_stuck_is_found_among_many_copies(whole: WholeRooms) -> None:
    """At 50 000 copies; `make bench` takes the time at a million."""
    Desk(whole["grading"]).exam()
    many_copies.fill(whole, 50_000)
    found = Counter(item.stage for item in whole["grading"].room.stuck(whole["grading"]))
    assert found == {"finalize": many_copies.STUCK, "lock": many_copies.STUCK}
