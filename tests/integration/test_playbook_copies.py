"""playbook.exams_copy shows what grading.copies holds: at every moment, after a restore, after an upgrade."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from harness.servers import Postgres
from korrigo import playbook, rooms
from korrigo.commands.migrate import plans
from korrigo_kit.migrate import connect, migrate
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.settings import Settings, load

Connection = psycopg.Connection[Any]
COUNT = "SELECT count(*) FROM playbook.exams_copy"


@pytest.fixture(scope="module")
def settings(postgres_server: Postgres) -> Settings:
    """An installation's database with every schema, without any process."""
    url = postgres_server.url(postgres_server.create_database("playbook"))
    found = load(rooms.sections(), {"KORRIGO_DATABASE__URL": url})
    migrate(found.database, plans())
    return found


@pytest.fixture
def database(settings: Settings) -> Iterator[Connection]:
    with connect(settings.database) as connection:
        playbook.install(connection, settings.database)
        yield connection


def _stage(database: Connection) -> str:
    """Write a copy (and its exam) as no flow would; returns its id."""
    row = database.execute(
        "WITH exam AS (INSERT INTO grading.exams (id, name, date, split_mode, pages_per_booklet, split_horizontal,"
        " grading_structure, max_score, auto_validate, created_by) VALUES (gen_random_uuid(), 'e', '2026-01-12',"
        " 'custom', 0, false, '[]', 20, false, %(by)s) RETURNING id)"
        " INSERT INTO grading.copies (id, exam_id, anonymous_id, created_by)"
        " SELECT gen_random_uuid(), id, %(name)s, %(by)s FROM exam RETURNING id",
        {"by": SYSTEM_ACTOR, "name": secrets.token_hex(6)},
    ).fetchone()
    assert row is not None
    return str(row[0])


def _shown(database: Connection, copy_id: str, column: str) -> Any:
    row = database.execute(f"SELECT {column} FROM playbook.exams_copy WHERE id = %s".encode(), (copy_id,)).fetchone()
    return row[0] if row else "nothing"


def _number(database: Connection, statement: str = COUNT) -> int:
    row = database.execute(statement.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_a_change_shows_with_its_transaction(database: Connection) -> None:
    copy_id = _stage(database)
    assert _shown(database, copy_id, "status") == "STAGING"
    with database.transaction(force_rollback=True):
        database.execute("UPDATE grading.copies SET grading_retries = 2, deleted_at = now() WHERE id = %s", (copy_id,))
        assert (_shown(database, copy_id, "grading_retries"), _shown(database, copy_id, "deleted")) == (2, True)
    assert (_shown(database, copy_id, "grading_retries"), _shown(database, copy_id, "deleted")) == (0, False)
    assert _shown(database, copy_id, "grading_error_message") == ""
    database.execute("DELETE FROM grading.copies WHERE id = %s", (copy_id,))
    assert _shown(database, copy_id, "status") == "nothing"
    assert not playbook.differs(database)


def test_a_room_writes_it_with_its_own_rights_and_no_others(database: Connection) -> None:
    copy_id = _stage(database)
    with database.transaction():
        database.execute("SET LOCAL ROLE korrigo_grading")
        database.execute("UPDATE grading.copies SET grading_retries = 1 WHERE id = %s", (copy_id,))
    assert _shown(database, copy_id, "grading_retries") == 1
    database.execute("SET ROLE korrigo_grading")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.execute("UPDATE playbook.exams_copy SET grading_retries = 3")


def test_what_the_trigger_did_not_see_is_mended(database: Connection, settings: Settings) -> None:
    """As after the load of a dump, where rows come before triggers."""
    kept, lost, changed = (_stage(database) for _ in range(3))
    with database.transaction():
        database.execute("SET LOCAL session_replication_role = replica")
        database.execute("DELETE FROM grading.copies WHERE id = %s", (lost,))
        database.execute("UPDATE grading.copies SET grading_retries = 2 WHERE id = %s", (changed,))
        new = _stage(database)
    assert playbook.differs(database)
    playbook.install(database, settings.database)
    assert not playbook.differs(database)
    assert [_shown(database, copy_id, "grading_retries") for copy_id in (kept, lost, changed, new)] == [
        0, "nothing", 2, 0
    ]  # fmt: skip


def test_the_view_of_an_older_release_becomes_a_table(database: Connection, settings: Settings) -> None:
    copy_id = _stage(database)
    database.execute("DROP TABLE playbook.exams_copy")
    database.execute("CREATE VIEW playbook.exams_copy AS SELECT id FROM grading.copies")
    playbook.install(database, settings.database)
    assert _shown(database, copy_id, "status") == "STAGING"


def test_without_the_schema_copies_are_written_all_the_same(database: Connection, settings: Settings) -> None:
    database.execute("DROP SCHEMA playbook CASCADE")
    copies = "SELECT count(*) FROM grading.copies"
    before = _number(database, copies)
    _stage(database)
    playbook.install(database, settings.database)
    assert _number(database) == _number(database, copies) == before + 1
