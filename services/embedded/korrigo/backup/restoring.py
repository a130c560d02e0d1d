"""The story of a restore: everything is made beside the present state, judged, and put in its place in one step.

    check every byte ─► back up what is there ─► objects into the store ─► new database beside the old one
        ─► judge it ─► settle it ─► [swap the names, one transaction] ─► drop the old one

Killed anywhere before the swap, the old state is untouched (objects more in the store are no harm); after it, the
new one is complete. Nothing of the product may run meanwhile: no process may carry what it knew of the old state
into the new one. Called by `korrigo backup restore` and `korrigo restore_backup`; `korrigo backup settle` does the
last steps for a database that other tools have restored.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from korrigo import installation
from korrigo.backup import archive, schedule, servers, tables, taking, trial
from korrigo.backup.archive import Manifest
from korrigo.commands import migrate
from korrigo.home import Home
from korrigo.switches import owner_database, tell, turn
from korrigo_kit import broker
from korrigo_kit.blobs import BlobStore
from korrigo_kit.clock import rfc3339
from korrigo_kit.db import Tx
from korrigo_kit.errors import Bug, KorrigoError, StateConflict, Unavailable
from korrigo_kit.settings import Settings
from korrigo_kit.switches import READ_ONLY, TOKENS_FROM

NEW, OLD = "_restoring", "_replaced"
# A lock granted after the restore must have a higher fence than any that was granted after the backup.
_FENCE_LEAP = 1_000_000
# Our own sessions end a moment after they were closed.
_LEAVE_SECONDS = 5.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done: from which backup, and where the replaced state went (None: there was none)."""

    manifest: Manifest
    saved_as: Path | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What to restore and where: the checked backup, the home, the folder of backups."""

    home: Home
    root: Path
    manifest: Manifest
    directory: Path
    say: Say


def rehearse(home: Home, settings: Settings, root: Path) -> Manifest:
    """Check a backup and restore it on trial, touching nothing else."""
    manifest = archive.check(root)
    trial.require_known_schemas(manifest)
    trial.rehearse(home, settings, root, manifest)
    return manifest


def restore(wish: Wish, confirm: Callable[[], None]) -> Restored:
    """Put a checked backup in the place of the present state; `confirm` is asked when there is one.

    Raises StateConflict (HOME_IN_USE, IN_USE, NEWER_SCHEMA), Invalid (BACKUP_*), Unavailable; the present state is
    untouched then.
    """
    trial.require_known_schemas(wish.manifest)
    with _target(wish.home) as settings:
        saved_as = None
        if tables.has_rooms(settings.database):
            confirm()
            with tables.maintenance(settings.database) as connection:
                _require_unused(connection, tables.name_in(settings.database))
            wish.say("backing up the present state first")
            saved_as = taking.take(
                wish.home,
                settings,
                wish.directory,
                kind=schedule.BEFORE_RESTORE,
                say=lambda text: None,
                spare=wish.root.name,
            ).path
            wish.say(f"saved as {saved_as}")
        _put_objects(wish, taking.store_of(settings))
        _replace_database(wish, settings, saved_as)
    return Restored(wish.manifest, saved_as)


@contextmanager
def _target(home: Home) -> Iterator[Settings]:
    if not installation.is_embedded(os.environ):
        with servers.instance(home) as settings:
            yield settings
        return
    home.prepare()
    lock = home.lock()
    try:
        is_new = False
        if not servers.has_data(home):
            # Should this restore be killed, the next start makes its first account from this file.
            _, is_new = installation.admin_password(home, os.environ, is_first_start=True)
        with servers.owned(home) as settings:
            yield settings
        if is_new:  # the accounts came from the backup: that password opens nothing
            home.admin_password_file.unlink()
    finally:
        lock.release()


def _put_objects(wish: Wish, store: BlobStore) -> None:
    wish.say(f"bringing {wish.manifest.objects} objects into the store")
    for path in sorted((wish.root / archive.OBJECTS).glob("??/*")):
        if not _is_intact(store, path.name):
            store.delete(path.name)
            if store.put_file(path).sha256 != path.name:
                raise Bug("BLOB_CORRUPTED", "an object changed while it was restored", sha256=path.name)


def _is_intact(store: BlobStore, sha256: str) -> bool:
    if store.size(sha256) is None:
        return False
    try:
        for _ in store.stream(sha256):  # a whole one is verified before its first byte
            break
    except KorrigoError as error:
        if isinstance(error, Unavailable):
            raise
        return False
    return True


def _replace_database(wish: Wish, settings: Settings, saved_as: Path | None) -> None:
    name = tables.name_in(settings.database)
    with tables.maintenance(settings.database) as connection:
        tables.drop(connection, name + OLD)
        _require_unused(connection, name)
        tables.create_empty(connection, name + NEW)
        try:
            new = servers.pointed(settings, tables.beside(settings.database, NEW))
            wish.say("loading the database beside the present one")
            trial.load_and_judge(wish.home, new, wish.root, wish.manifest)
            wish.say("settling it")
            _settle(
                new,
                {
                    "backup": wish.manifest.name,
                    "backup_created_at": wish.manifest.created_at,
                    "backup_sha256": archive.hash_file(wish.root / archive.SUMS),
                    "replaced": saved_as.name if saved_as else None,
                },
            )
            last = archive.read_manifest(saved_as or wish.root)
            taking.note(new, last.name, last.created_at, {"objects": last.objects, "object_bytes": last.object_bytes})
            _purge_broker(settings)
            wish.say("swapping")
            tables.swap(connection, name, name + NEW, name + OLD)
        except BaseException:
            tables.drop(connection, name + NEW)
            raise
        wish.say("swapped")
        tables.drop(connection, name + OLD)


def _require_unused(connection: psycopg.Connection[Any], name: str) -> None:
    deadline = time.monotonic() + _LEAVE_SECONDS
    while users := tables.users_of(connection, name):
        if time.monotonic() > deadline:
            raise StateConflict("IN_USE", f"stop the product first: {', '.join(users)} use the database")
        time.sleep(0.1)


def adopt(settings: Settings, name: str, at: datetime, say: Say, *, dry_run: bool) -> int:
    """Judge and settle a database that other tools have brought back to an earlier moment; returns its objects.

    Raises StateConflict (NOT_MIGRATED, IN_USE), Invalid (BACKUP_INCOMPLETE, BACKUP_AUDIT_BROKEN), Unavailable;
    nothing is changed then.
    """
    due = migrate.due(settings)
    if due:
        raise StateConflict("NOT_MIGRATED", f"run `korrigo migrate` first: {', '.join(due)}")
    store = taking.store_of(settings)
    say("judging it")
    objects = trial.judge(settings, name, lambda sha256: store.size(sha256) is not None)
    if dry_run:
        return objects
    with tables.maintenance(settings.database) as connection:
        _require_unused(connection, tables.name_in(settings.database))
    say("settling it")
    _purge_broker(settings)
    _settle(settings, {"backup": name, "backup_created_at": rfc3339(at), "backup_sha256": None, "replaced": None})
    return objects


def _settle(settings: Settings, told: dict[str, object]) -> None:
    """End what must not outlive a restore, and tell the audit trail."""
    database = owner_database(settings)
    try:
        with database.transaction() as tx:
            tx.run("SET LOCAL statement_timeout = 0")
            turn(tx, READ_ONLY, 0)
            # A session that began after the backup is unknown here; its token would still be good.
            turn(tx, TOKENS_FROM, tx.row("SELECT extract(epoch FROM clock_timestamp())::bigint + 1 AS now")["now"])
            tx.run("UPDATE grading.sessions SET revoked_at = clock_timestamp() WHERE revoked_at IS NULL")
            # The sweeper makes the copies READY and tells UNLOCK.
            tx.run("DELETE FROM grading.copy_locks")
            tx.run("UPDATE grading.copies SET fence = fence + %s", (_FENCE_LEAP,))
            for room in installation.ROOMS:
                _settle_room(tx, room)
            tell(tx, "RESTORE", told)
    finally:
        database.close()


def _settle_room(tx: Tx, room: str) -> None:
    # Whoever held the lease is gone; nobody will ring again for those that were rung.
    tx.run(
        f"UPDATE {room}.jobs SET state = 'READY', fence = fence + 1, lease_until = NULL, worker = NULL,"
        " not_before = clock_timestamp() WHERE state = 'RUNNING'"
    )
    tx.run(f"UPDATE {room}.jobs SET rung_at = NULL, rings = 0 WHERE state = 'READY'")
    # What was on its way to another room is asked for again, however old the backup is.
    tx.run(f"UPDATE {room}.outbox SET sent_at = clock_timestamp() WHERE sent_at IS NOT NULL")
    tx.run(f"DELETE FROM {room}.inbox_looks")
    tx.run(f"DELETE FROM {room}.heartbeats")


def _purge_broker(settings: Settings) -> None:
    """Empty RabbitMQ's queues: an event of the time after the backup carries a number that will be given again."""
    if broker.is_pgmq(settings):
        return  # its queues lay in the database that is replaced
    try:
        with broker.connection(settings) as connection:
            for room in installation.ROOMS:
                for queue in (broker.event_queue(room, ()), broker.job_queue(room)):
                    with connection.channel() as channel:
                        bound = queue.bind(channel)
                        bound.declare()
                        bound.purge()
    except Exception as error:
        raise Unavailable("BROKER_UNAVAILABLE", "the broker's queues cannot be emptied") from error
