"""An import that lost its job is given another one: by the sweep, or by an intervention where the work had failed."""

from __future__ import annotations

import pytest

from harness.orders import ask, make_scan, told
from harness.whole_rooms import WholeRooms
from korrigo_ingest.flows import retrying
from korrigo_kit.rpc import Channels


def _job_of(rooms: WholeRooms, scan: str) -> tuple[object, ...]:
    """Return the state of a scan, and the state and attempts of its job."""
    (found,) = rooms.sql(
        "SELECT s.state, j.state, j.attempts FROM ingest.scans s JOIN ingest.jobs j ON j.id = s.job_id WHERE s.id = %s",
        scan,
    )
    return tuple(found)


@pytest.mark.parametrize("job_state", ["FAILED", "QUARANTINED", "DONE", None])
def test_an_open_import_without_a_living_job_gets_one(
    rooms: WholeRooms, channels: Channels, job_state: str | None
) -> None:
    scan = make_scan(rooms, "RUNNING", None, job_state or "DONE")
    if job_state is None:
        rooms.sql("DELETE FROM ingest.jobs WHERE subject_id = %s", scan)
    plan = ask(channels, "RetryImport", "scan", scan, is_dry_run=True)
    assert [item.note for item in plan.items] == ["would be tried again"]
    assert ask(channels, "RetryImport", "scan", scan).affected == 1
    assert _job_of(rooms, scan) == ("RECEIVED", "READY", 0)
    # and a second order finds nothing to heal
    ask(channels, "RetryImport", "scan", scan)
    assert rooms.sql("SELECT count(*) FROM ingest.jobs WHERE subject_id = %s AND state = 'READY'", scan) == [(1,)]


def test_the_sweep_gives_a_job_to_an_import_that_lost_its_own_but_not_to_one_that_fails(rooms: WholeRooms) -> None:
    states = ("DONE", "DONE", "DONE", "FAILED")
    over, gone, young, failing = (make_scan(rooms, "RUNNING", None, state) for state in states)
    rooms.sql("DELETE FROM ingest.jobs WHERE subject_id = %s", gone)
    rooms.sql(
        "UPDATE ingest.scans SET updated_at = now() - interval '16 seconds' WHERE id = ANY(%s::uuid[])",
        [over, gone, failing],
    )
    assert retrying.give_jobs(rooms["ingest"]) == 2
    assert _job_of(rooms, over) == _job_of(rooms, gone) == ("RECEIVED", "READY", 0)
    payloads = rooms.sql("SELECT payload ->> 'scan_id' FROM ingest.jobs WHERE subject_id = %s", gone)
    assert payloads == [(gone,)]
    assert (_job_of(rooms, young), _job_of(rooms, failing)) == (("RUNNING", "DONE", 3), ("RUNNING", "FAILED", 3))
    assert [leaf["action"] for leaf in told(rooms, "ingest", gone)] == ["RETRY"]
    assert retrying.give_jobs(rooms["ingest"]) == 0
    assert "jobless-imports" in {work.name for work in rooms["ingest"].room.periodic(rooms["ingest"])}
