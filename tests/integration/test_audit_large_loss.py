"""A large loss is counted to the last event: streams beyond those that are looked at one by one count as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.servers import Postgres
from integration.test_gauges_of_rooms import Trail
from korrigo_audit.flows import completeness
from korrigo_kit.ids import new_id

STREAMS = 57  # more than are looked at one by one


@pytest.fixture
def trail(postgres_server: Postgres, tmp_path: Path) -> Iterator[Trail]:
    """Two rooms in a fresh database."""
    made = Trail(postgres_server.url(postgres_server.create_database("loss")), tmp_path)
    yield made
    made.close()


def _write(trail: Trail, *, is_heard: bool) -> None:
    for _ in range(STREAMS):
        trail.subject = ("copy", new_id())
        trail.write("IMPORT")
        trail.write("VALIDATE")
        if is_heard:
            trail.hear()


def test_every_removed_event_counts(trail: Trail) -> None:
    _write(trail, is_heard=True)
    assert completeness.missing(trail.audit, 0) == {}
    trail.tamper("DELETE FROM audit.records WHERE source_seq = 2")
    assert completeness.missing(trail.audit) == {"VALIDATE": 50, "OTHER": STREAMS - 50}
    trail.tamper("DELETE FROM audit.records")
    assert completeness.missing(trail.audit) == {"IMPORT": 50, "VALIDATE": 50, "OTHER": 2 * (STREAMS - 50)}


def test_every_event_that_never_came_counts_once_its_stream_is_quiet(trail: Trail) -> None:
    _write(trail, is_heard=False)
    assert completeness.missing(trail.audit, 0) == {"IMPORT": 50, "VALIDATE": 50, "OTHER": 2 * (STREAMS - 50)}
    assert completeness.missing(trail.audit) == {}, "all of them are on their way"
    trail.tamper("UPDATE ingest.outbox SET created_at = created_at - interval '1 minute'")
    # Those that are looked at are young still: their ids tell.
    assert completeness.missing(trail.audit) == {"OTHER": 2 * (STREAMS - 50)}
