"""A failed import is counted when its failure is committed, and no more often: a lost commit is repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.scrapes import Scrape
from harness.servers import Postgres
from integration.test_import_story import Ingest, exam
from korrigo_kit.migrate import connect
from korrigo_kit.telemetry.metrics import expose

# A sequence keeps what it gave when its transaction is rolled back: the first commit of a refusal fails, no other.
_LOSE_THE_FIRST_COMMIT = """
CREATE SEQUENCE ingest.commits_tried;
GRANT USAGE ON SEQUENCE ingest.commits_tried TO PUBLIC;
CREATE FUNCTION ingest.lose_the_first() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('ingest.commits_tried') = 1 THEN
        RAISE EXCEPTION 'the first commit is lost' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER lose_the_first AFTER UPDATE ON ingest.scans DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (new.state = 'REJECTED') EXECUTE FUNCTION ingest.lose_the_first();
"""


@pytest.fixture
def ingest(postgres_server: Postgres, tmp_path: Path) -> Iterator[Ingest]:
    """An ingest room in a database of its own, whose first refusal is not committed."""
    room = Ingest(postgres_server.url(postgres_server.create_database("counted")), tmp_path)
    with connect(room.rt.settings.database) as connection:
        connection.execute(_LOSE_THE_FIRST_COMMIT.encode())
    yield room
    room.process.close()


def _counted() -> tuple[float, float]:
    page = Scrape(expose([]).decode())
    return (
        page.total("grading_ocr_errors_total"),
        sum(
            number
            for labels, number in page.of("grading_import_duration_seconds_count").items()
            if dict(labels)["status"] == "failed"
        ),
    )


def test_a_failure_whose_first_commit_is_lost_is_counted_once(ingest: Ingest) -> None:
    before = _counted()
    scan = ingest.imported(b"%PDF-1.7\nnothing more", exam())
    assert scan["state"] == "REJECTED"
    with connect(ingest.rt.settings.database) as connection:
        assert connection.execute("SELECT last_value FROM ingest.commits_tried").fetchone() == (2,)
    assert tuple(after - then for after, then in zip(_counted(), before, strict=True)) == (1, 1)
