"""Up one release and back: nothing is lost, whichever way back is taken.

One home goes through it all: the release before, this one, the one after it, this one again by its code alone, and
this one again from the backup that the upgrade had made. A marker works the whole time with one session.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from harness import releases
from harness.backups import Columns, Populated, columns, populate, stopped_tables, tables
from harness.checker import check
from harness.client import Client
from harness.instance import ROOMS, Embedded
from harness.processes import free_port
from harness.releases import Release
from korrigo.backup import archive, trial
from korrigo.backup.schedule import BEFORE_MIGRATION

pytestmark = pytest.mark.allowed_skip("a checkout without history cannot show the release before")


@dataclass
class Machine:
    """A home on one address, and the code that runs on it."""

    instance: Embedded
    client: Client

    def run(self, release: Release) -> None:
        """Stop what runs, put another release's code in its place, start it; the home stays."""
        if self.instance.url:
            assert self.instance.stop_cleanly() == 0
        self.instance.extra_env["PYTHONPATH"] = release.python_path
        self.instance.start()

    def backups(self) -> list[dict[str, Any]]:
        """List the backups, oldest first."""
        found: list[dict[str, Any]] = json.loads(self.instance.cli("backup", "list", "--json").stdout)["items"]
        return found


def schemas(instance: Embedded) -> dict[str, str]:
    """Read the version of each room's schema."""
    with psycopg.connect(instance.database_url()) as connection:
        return {
            room: row[0]
            for room in ROOMS
            for row in connection.execute(f"SELECT version_num FROM {room}.alembic_version".encode())
        }


@pytest.fixture
def machine(fresh: Embedded) -> Iterator[Machine]:
    port = free_port()
    fresh.extra_env["KORRIGO_HTTP__PORT"] = str(port)
    with Client(f"http://127.0.0.1:{port}", patience_seconds=30) as client:
        yield Machine(fresh, client)


def test_a_home_goes_up_and_back(machine: Machine, tmp_path: Path) -> None:
    instance, client = machine.instance, machine.client
    try:
        old = releases.before(tmp_path / "before")
    except releases.NoHistory as error:
        pytest.skip(f"NO HISTORY: {error}")
    this, new = releases.this(), releases.after(tmp_path / "after")

    machine.run(old)
    assert schemas(instance) == old.heads
    client.login("admin", instance.admin_password)
    made = populate(client, tmp_path, graded=1, seed=1)
    known, held = _content(instance)

    machine.run(this)
    _is_upgraded(machine, this, is_moved=old.heads != this.heads, known=known, held=held)
    client.annotate(made.locked, content="after the upgrade")  # the session and the lock of before
    _finish(client, made.locked)
    known, held = _content(instance)

    machine.run(new)
    saved = _is_upgraded(machine, new, is_moved=True, known=known, held=held)
    lock = client.lock(made.ready)
    client.annotate(lock, content="by the next release")

    machine.run(this)
    assert schemas(instance) == new.heads, "going back is going back to the code; the schema stays"
    _works_on_a_newer_schema(machine, made, lock)

    assert instance.stop_cleanly() == 0
    done = instance.cli("backup", "restore", saved, "--yes")
    assert done.returncode == 0, done.stderr
    assert stopped_tables(instance, known) == held
    machine.instance.start()
    assert schemas(instance) == this.heads
    client.login("admin", instance.admin_password)
    assert client.wait_copy(made.ready, ["READY"])["version"] and client.annotations(made.ready) == []
    assert check(made.ledger, client, instance, expected_copies=1) == []


def _content(instance: Embedded) -> tuple[Columns, dict[str, str]]:
    url = instance.database_url()
    return columns(url), tables(url)


def _is_upgraded(machine: Machine, to: Release, *, is_moved: bool, known: Columns, held: dict[str, str]) -> str:
    """Hold an upgrade to its promise: a proven backup first, then the new schema with the old content."""
    url = machine.instance.database_url()
    assert schemas(machine.instance) == to.heads
    assert tables(url, known) == held
    kinds = [item["kind"] for item in machine.backups()]
    assert kinds[-1:] == [BEFORE_MIGRATION] if is_moved else BEFORE_MIGRATION not in kinds
    return str(machine.backups()[-1]["name"]) if is_moved else ""


def _finish(client: Client, lock: Any) -> None:
    client.put_scores(lock, {"q1": 4, "q2": 5})
    client.finalize(lock)
    client.wait_graded(lock.copy_id)
    client.wait_audit(lock.copy_id, "FINALIZE")


def _works_on_a_newer_schema(machine: Machine, made: Populated, lock: Any) -> None:
    instance, client = machine.instance, machine.client
    _finish(client, lock)  # taken under the next release
    assert check(made.ledger, client, instance, expected_copies=1) == []
    due = instance.cli("migrate", "--json")
    assert due.returncode == 0 and json.loads(due.stdout)["moved"] == [], due.stdout + due.stderr
    done = instance.cli("backup", "create", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schemas"] != told["known_schemas"] == releases.this().heads
    manifest = archive.check(Path(told["path"]))
    assert manifest.counts["grading.of_the_next_release"] == 0
    trial.require_known_schemas(manifest)  # what this code made on a newer schema, this code restores
