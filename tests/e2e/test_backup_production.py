"""Backup on a PostgreSQL server and an S3 store: the same commands, the same promise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness.backups import final_sha256, populate, tables
from harness.checker import check
from harness.client import Client
from harness.production import Production
from harness.servers import S3, Postgres, RabbitMQ
from korrigo.backup import archive

GRADED = 2
CONFLICT, DAMAGED = 4, 5


def _told(instance: Production, *words: str) -> dict[str, Any]:
    done = instance.cli(*words, "--json")
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_empty_database_and_an_empty_bucket_become_the_same_system(
    postgres_server: Postgres, own_rabbitmq: RabbitMQ, s3_server: S3, tmp_path: Path
) -> None:
    directory = tmp_path / "backups"
    env = {"KORRIGO_BACKUP__DIRECTORY": str(directory)}
    # A broker of their own: a restore empties its queues.
    with Production(postgres_server, own_rabbitmq, s3_server, env=env) as old:
        assert isinstance(old, Production)
        with Client(old.url, patience_seconds=30) as client:
            client.login("admin", old.admin_password)
            made = populate(client, tmp_path, graded=GRADED, seed=1)
            assert check(made.ledger, client, old, expected_copies=GRADED) == []
        told = _told(old, "backup", "create")
        held = tables(old.database_url)
        _is_good_and_listed(old, told)
        _the_store_is_needed(old, s3_server, directory)
        refused = old.cli("backup", "restore", "latest", "--yes")
        assert refused.returncode == CONFLICT and "IN_USE" in refused.stderr, refused.stderr
    new = Production(postgres_server, own_rabbitmq, s3_server, env=env)
    try:
        new.make_database()
        restored = _told(new, "backup", "restore", told["name"])
        assert restored["restored"] is True and restored["saved_as"] is None
        assert tables(new.database_url) == held
        new.start()
        with Client(new.url, patience_seconds=30) as client:
            client.login("admin", new.admin_password)
            assert {copy_id: final_sha256(client, copy_id) for copy_id in made.finals} == made.finals
            assert check(made.ledger, client, new, expected_copies=GRADED) == []
            client.wait_copy(made.locked.copy_id, ["READY"], seconds=60)
            # and it works on: pictures, rendering, events through the new broker and bucket
            lock = client.lock(made.ready)
            client.put_scores(lock, {"q1": 4, "q2": 5})
            client.finalize(lock)
            client.wait_graded(made.ready)
            client.wait_audit(made.ready, "FINALIZE")
    finally:
        new.stop()


def _is_good_and_listed(instance: Production, told: dict[str, Any]) -> None:
    assert told["copies"] == GRADED + 2 and told["objects"] > GRADED
    assert archive.check(Path(told["path"])).counts["grading.copies"] == GRADED + 2
    assert [item["name"] for item in _told(instance, "backup", "list")["items"]] == [told["name"]]
    assert _told(instance, "backup", "verify", "latest")["is_good"] is True
    assert _told(instance, "backup", "restore", "latest", "--dry-run")["restored"] is False


def _the_store_is_needed(instance: Production, s3: S3, directory: Path) -> None:
    """A backup whose objects cannot be had is none: refused, and nothing with a good name is left."""
    aside = directory.with_name("aside")
    shutil.move(directory, aside)  # its objects would serve instead of the store's
    s3.kill()
    try:
        failed = instance.cli("backup", "create")
    finally:
        s3.start()
    assert failed.returncode not in (0, DAMAGED), failed.stdout
    assert [path.name for path in directory.iterdir()] == [".lock"]
    shutil.rmtree(directory)
    shutil.move(aside, directory)


