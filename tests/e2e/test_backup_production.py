"""Backup on a PostgreSQL server and an S3 store: the same commands, the same promise; and those of other tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness.backups import Populated, final_sha256, populate, tables
from harness.checker import check
from harness.client import Client
from harness.production import Production
from harness.servers import S3, Postgres, RabbitMQ
from korrigo import postgres
from korrigo.backup import archive

GRADED = 2
CONFLICT, DAMAGED = 4, 5


@dataclass
class World:
    """An instance that was backed up and stopped."""

    instance: Production
    directory: Path
    made: Populated
    told: dict[str, Any]
    held: dict[str, str]


def _told(instance: Production, *words: str) -> dict[str, Any]:
    done = instance.cli(*words, "--json")
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _note_of_another_server(url: str) -> None:
    """Leave at a column what PostgreSQL 15.20 of Debian keeps at every one, and no other server takes."""
    with psycopg.connect(url) as connection:
        noted = "UPDATE pg_attribute SET attoptions = '{pg_attver=31148832}' WHERE attrelid = %s::regclass"
        assert connection.execute(f"{noted} AND attnum = 1".encode(), ("audit.alembic_version",)).rowcount == 1


@pytest.fixture(scope="module")
def world(postgres_server: Postgres, s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Mark copies, back them up while the product runs, stop it."""
    folder = tmp_path_factory.mktemp("production")
    directory = folder / "backups"
    rabbitmq = RabbitMQ()  # one of its own: a restore empties the queues
    rabbitmq.start()
    env = {"KORRIGO_BACKUP__DIRECTORY": str(directory)}
    instance = Production(postgres_server, rabbitmq, s3_server, together=True, env=env)
    try:
        instance.start()
        with Client(instance.url, patience_seconds=30) as client:
            client.login("admin", instance.admin_password)
            made = populate(client, folder, graded=GRADED, seed=1)
            assert check(made.ledger, client, instance, expected_copies=GRADED) == []
        _note_of_another_server(instance.database_url)
        told = _told(instance, "backup", "create", "--kind", "nightly")
        held = tables(instance.database_url)
        refused = instance.cli("backup", "restore", "latest", "--yes")
        assert refused.returncode == CONFLICT and "IN_USE" in refused.stderr, refused.stderr
        instance.keeper.stop()
        yield World(instance, directory, made, told, held)
    finally:
        instance.stop()
        rabbitmq.stop()


def _another(world: World, **env: str) -> Production:
    old = world.instance
    return Production(old.postgres, old.rabbitmq, old.s3, together=True, env=old.extra_env | env)


def test_a_backup_holds_what_the_bucket_held(world: World) -> None:
    told, instance = world.told, world.instance
    assert (told["copies"], told["kind"]) == (GRADED + 2, "nightly") and told["objects"] > GRADED
    assert archive.check(Path(told["path"])).counts["grading.copies"] == GRADED + 2
    assert [item["name"] for item in _told(instance, "backup", "list")["items"]] == [told["name"]]
    assert _told(instance, "backup", "restore", "latest", "--dry-run")["restored"] is False


def test_without_the_store_there_is_no_backup(world: World, tmp_path: Path) -> None:
    s3 = world.instance.s3
    s3.kill()
    try:
        failed = world.instance.cli("backup", "create", "--to", str(tmp_path))  # where no older one has the objects
    finally:
        s3.start()
    assert failed.returncode not in (0, DAMAGED), failed.stdout
    assert [path.name for path in tmp_path.iterdir()] == [".lock"], "nothing with a good name is left"


def test_an_empty_database_and_an_empty_bucket_become_the_same_system(world: World) -> None:
    """Restored by newer programs than the server's, which say more than it understands: the images have no others."""
    newest = max(postgres.every_binaries({}), key=lambda binaries: binaries.major)
    new, made = _another(world, **{postgres.BINARIES_VARIABLE: str(newest.folder)}), world.made
    try:
        new.make_database()
        restored = _told(new, "backup", "restore", world.told["name"])
        assert restored["restored"] is True and restored["saved_as"] is None
        assert tables(new.database_url) == world.held
        new.start()
        with Client(new.url, patience_seconds=30) as client:
            client.login("admin", new.admin_password)
            assert {copy_id: final_sha256(client, copy_id) for copy_id in made.finals} == made.finals
            assert check(made.ledger, client, new, expected_copies=GRADED) == []
            client.wait_copy(made.locked.copy_id, ["READY"], seconds=60)
            # and it works on: rendering, events, the new bucket
            lock = client.lock(made.ready)
            client.put_scores(lock, {"q1": 4, "q2": 5})
            client.finalize(lock)
            client.wait_graded(made.ready)
            client.wait_audit(made.ready, "FINALIZE")
    finally:
        new.stop()


def test_what_another_tool_restored_is_judged_and_settled(world: World) -> None:
    copied, s3 = _another(world), world.instance.s3
    try:
        copied.make_database(like=world.instance)  # byte by byte, as a base backup with its log would be
        key = copied.blob_key(next(iter(world.made.finals.values())))
        content = bytes(s3.store().get(key).bytes())
        s3.store().delete(key)
        refused = copied.cli("backup", "settle", "base-0301")
        assert refused.returncode == DAMAGED and "1 objects are missing" in refused.stderr, refused.stderr
        s3.store().put(key, content)
        assert _told(copied, "backup", "settle", "base-0301", "--dry-run")["settled"] is False
        assert _sessions(copied) > 0 and tables(copied.database_url) == world.held
        assert _told(copied, "backup", "settle", "base-0301", "--at", "2h")["settled"] is True
        assert _sessions(copied) == 0 and tables(copied.database_url) == world.held
        at = "2027-03-01T02:00:00.000000Z"
        assert _told(copied, "backup", "record", "base-0302", "--at", at)["at"] == at
        with psycopg.connect(copied.database_url) as connection:
            row = connection.execute("SELECT facts->>'name' FROM grading.heartbeats WHERE name = 'backup'").fetchone()
        assert row == ("base-0302",)
    finally:
        copied.stop()


def _sessions(instance: Production) -> int:
    with psycopg.connect(instance.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM grading.sessions WHERE revoked_at IS NULL").fetchone()
    assert row is not None
    return int(row[0])
