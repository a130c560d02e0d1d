"""The story of a backup: the database at one moment, then the objects it names, then a trial, then the name.

Called by `korrigo backup create` (by hand, by the supervisor every night), by `korrigo migrate` before it changes
anything and by a restore before it replaces anything.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from urllib.parse import unquote, urlsplit

from korrigo.backup import archive, schedule, servers, tables, trial
from korrigo.backup.archive import Manifest
from korrigo.home import Home
from korrigo.settings import BackupSettings
from korrigo.switches import owner_database
from korrigo_kit.blobs import BlobStore, open_store
from korrigo_kit.clock import rfc3339
from korrigo_kit.errors import Invalid, StateConflict, Unavailable
from korrigo_kit.settings import Settings

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Taken:
    """A good backup: where it lies, what it says, how long it took, what it replaced."""

    path: Path
    manifest: Manifest
    seconds: float
    removed: Sequence[str] = ()


def directory_of(home: Home, settings: Settings | None) -> Path:
    """Return the configured folder of backups."""
    given = settings.get(BackupSettings).directory if settings else os.environ.get("KORRIGO_BACKUP__DIRECTORY", "")
    return Path(given).absolute() if given else home.root / "backups"


def take(
    home: Home, settings: Settings, directory: Path, *, kind: str = schedule.MANUAL, say: Say, spare: str = ""
) -> Taken:
    """Make a backup and prove it by a trial restore; then old ones go, but for the one named `spare`.

    Raises StateConflict (BACKUP_RUNNING, NOT_MIGRATED, BACKUP_INSIDE_STORE), Invalid (BACKUP_*), Unavailable,
    NotFound and Bug (an object is missing or damaged). Nothing with a final name is left then.
    """
    begun = time.monotonic()
    _require_outside_store(settings, directory)
    with archive.workplace(directory):
        servers.drop_leftovers(home)
        partial = directory / f"{archive.PARTIAL}{os.getpid()}"
        partial.mkdir(mode=0o700)
        try:
            manifest = _gather(home, settings, directory, partial, kind, say)
            archive.seal(partial)
            say("restoring it on trial")
            trial.rehearse(home, settings, partial, manifest)
            path = archive.publish(partial, manifest.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        keep = settings.get(BackupSettings).keep
        removed = archive.prune(directory, keep, spare) if kind != schedule.MANUAL else []
    seconds = round(time.monotonic() - begun, 1)
    facts = {"objects": manifest.objects, "object_bytes": manifest.object_bytes, "seconds": seconds}
    note(settings, path.name, manifest.created_at, facts)
    return Taken(path, manifest, seconds, removed)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a backup of this moment would hold, and where there is room for it."""

    directory: str
    kind: str
    copies: int
    objects: int
    schemas: Mapping[str, str]
    free_bytes: int
    would_remove: Sequence[str]


def foresee(home: Home, settings: Settings, directory: Path, *, kind: str) -> Foreseen:
    """Look at what `take` would do, and refuse what it would refuse at once; writes nothing.

    Raises StateConflict (NOT_MIGRATED, BACKUP_INSIDE_STORE), Invalid and Unavailable.
    """
    _require_outside_store(settings, directory)
    parent = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise Unavailable("BACKUP_DIRECTORY", f"{parent} may not be written")
    with tables.snapshot(settings.database, servers.programs(home)) as moment:
        room = os.statvfs(parent)
        keep = settings.get(BackupSettings).keep
        return Foreseen(
            str(directory),
            kind,
            moment.counts.get("grading.copies", 0),
            len(moment.objects),
            moment.schemas,
            room.f_bavail * room.f_frsize,
            archive.outdated(directory, keep, kind) if kind != schedule.MANUAL else [],
        )


def _gather(home: Home, settings: Settings, directory: Path, partial: Path, kind: str, say: Say) -> Manifest:
    with tables.snapshot(settings.database, servers.programs(home)) as moment:
        say("dumping the database")
        moment.dump(partial / archive.DUMP)
    say(f"gathering {len(moment.objects)} objects")
    object_bytes = _Objects(settings, directory, partial).gather(moment.objects)
    manifest = Manifest(
        format=archive.FORMAT,
        name=schedule.name_of(kind, moment.at),
        kind=kind,
        created_at=rfc3339(moment.at),
        product_version=version_of("korrigo"),
        postgres_major=moment.major,
        schemas=moment.schemas,
        counts=moment.counts,
        objects=len(moment.objects),
        object_bytes=object_bytes,
        dump_bytes=(partial / archive.DUMP).stat().st_size,
        known_schemas=trial.heads(),
    )
    (partial / archive.MANIFEST).write_text(manifest.text())
    return manifest


class _Objects:
    """Brings objects into a backup: by a second name where the disk allows, else by a copy.

    Objects never change, so a name more costs nothing and takes no room; a nightly backup on another disk shares
    them with the one before. `archive.check` reads all of them afterwards.
    """

    def __init__(self, settings: Settings, directory: Path, partial: Path) -> None:
        self._store = store_of(settings)
        self._partial = partial
        parts = urlsplit(settings.blobs.url)
        self._folders = [Path(unquote(parts.path)) / "cas"] if parts.scheme == "file" else []
        self._folders += [directory / name / archive.OBJECTS for name in list(schedule.names(directory))[-1:]]

    def gather(self, names: Sequence[str]) -> int:
        """Bring all; returns their bytes."""
        total = 0
        for sha256 in names:
            target = archive.object_path(self._partial, sha256)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._linked(sha256, target):
                self._store.fetch(sha256, target)
                target.chmod(0o600)
                archive.sync(target)
            total += target.stat().st_size
        return total

    def _linked(self, sha256: str, target: Path) -> bool:
        for source in self._sources(sha256):
            with suppress(OSError):  # another disk, a file system without links, a file that is not there
                target.hardlink_to(source)
                if archive.hash_file(target) == sha256:
                    return True
                target.unlink()
        return False

    def _sources(self, sha256: str) -> Iterator[Path]:
        yield from (folder / sha256[:2] / sha256 for folder in self._folders)


def store_of(settings: Settings) -> BlobStore:
    """Open the configured store."""
    blobs = settings.blobs
    if not blobs.url:
        raise Invalid("BLOB_STORE_URL", "KORRIGO_BLOBS__URL is missing")
    return open_store(
        blobs.url,
        endpoint=blobs.endpoint,
        access_key_id=blobs.access_key_id.get_secret_value() if blobs.access_key_id else None,
        secret_access_key=blobs.secret_access_key.get_secret_value() if blobs.secret_access_key else None,
        region=blobs.region,
    )


def _require_outside_store(settings: Settings, directory: Path) -> None:
    parts = urlsplit(settings.blobs.url)
    if parts.scheme == "file" and directory.absolute().is_relative_to(unquote(parts.path)):
        raise StateConflict("BACKUP_INSIDE_STORE", f"{directory} lies inside the store that is to be backed up")


def note(settings: Settings, name: str, at: str, facts: Mapping[str, object]) -> None:
    """Tell the running product when the last good backup was (RFC 3339); its metrics and doctor read this row."""
    database = owner_database(settings)
    try:
        with database.transaction() as tx:
            tx.run(
                "INSERT INTO heartbeats AS h (name, beat_at, facts) VALUES ('backup', %s, %s) ON CONFLICT (name)"
                " DO UPDATE SET beat_at = greatest(h.beat_at, excluded.beat_at), facts = excluded.facts",
                (at, json.dumps({"name": name, **facts})),
            )
    finally:
        database.close()
