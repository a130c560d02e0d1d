"""A backup on disk: a folder that holds everything, and the proof that it is whole.

    20270301T020000Z-nightly/
    ├── MANIFEST.json      what, when, of which versions, how many rows and objects
    ├── database.dump      pg_dump -Fc of the rooms' schemas
    ├── objects/ab/abcd…   every blob that a row of that moment names, under its SHA-256
    └── SHA256SUMS         of all the files above, readable for `sha256sum -c`

It is written under a hidden name, fsynced, restored on trial, and only then renamed: a folder with a final name is
a good one. No secret is inside, because none is needed: roles are derived from the new home's own password, and a
restore ends every session.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from korrigo.backup import schedule
from korrigo_kit.errors import Invalid, NotFound, StateConflict

FORMAT = 1
MANIFEST, DUMP, OBJECTS, SUMS = "MANIFEST.json", "database.dump", "objects", "SHA256SUMS"
PARTIAL = ".partial-"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says about itself; `counts` are rows per schema.table at the moment of the snapshot.

    A later release may add fields, and its backup from before a migration must be readable by this one: what is
    unknown is passed over, and every field that is added has a default.
    """

    format: int
    name: str
    kind: str
    created_at: str
    product_version: str
    postgres_major: int
    schemas: Mapping[str, str]
    counts: Mapping[str, int]
    objects: int
    object_bytes: int
    dump_bytes: int
    # What the release that made it knows: lower than `schemas` after its code was rolled back.
    known_schemas: Mapping[str, str] = field(default_factory=dict)

    @property
    def copies(self) -> int:
        """Copies that were there."""
        return self.counts.get("grading.copies", 0)

    def text(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def object_path(root: Path, sha256: str) -> Path:
    """Return where an object lies in a backup."""
    return root / OBJECTS / sha256[:2] / sha256


def read_manifest(root: Path) -> Manifest:
    """Read MANIFEST.json; raises Invalid BACKUP_DAMAGED, or BACKUP_FORMAT for one of a later product."""
    try:
        found: dict[str, Any] = json.loads((root / MANIFEST).read_text())
        if found["format"] != FORMAT:
            raise Invalid("BACKUP_FORMAT", f"{root.name} is of format {found['format']}, this product reads {FORMAT}")
        known = {item.name for item in fields(Manifest)}
        return Manifest(**{name: value for name, value in found.items() if name in known})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(root, f"{MANIFEST} cannot be read") from error


def damaged(root: Path, what: str) -> Invalid:
    """Make the refusal of a backup that is not whole."""
    return Invalid("BACKUP_DAMAGED", f"{root.name}: {what}")


def seal(root: Path) -> None:
    """Write SHA256SUMS and fsync every file and folder that is not on disk yet; raises Invalid BACKUP_DAMAGED."""
    sums = {name: hash_file(root / name) for name in _files(root) if name != SUMS}
    _require_named_by_content(root, sums)
    (root / SUMS).write_text(_sums(sums))
    for name in (MANIFEST, DUMP, SUMS):
        sync(root / name)
    for folder in sorted({(root / name).parent for name in _files(root)}, reverse=True):
        sync(folder)


def check(root: Path) -> Manifest:
    """Read every byte and compare; returns the manifest. Raises NotFound, Invalid BACKUP_DAMAGED."""
    if not root.is_dir():
        raise NotFound("BACKUP_NOT_FOUND", f"there is no backup {root}")
    listed = _read_sums(root)
    found = set(_files(root)) - {SUMS}
    for name in sorted(set(listed) ^ found):
        raise damaged(root, f"{name} is {'missing' if name in listed else 'there but not listed'}")
    for name, sha256 in listed.items():
        if hash_file(root / name) != sha256:
            raise damaged(root, f"{name} is not what it was")
    manifest = read_manifest(root)
    objects = _require_named_by_content(root, listed)
    if len(objects) != manifest.objects or sum(path.stat().st_size for path in objects) != manifest.object_bytes:
        raise damaged(root, "the objects are not those that the manifest counts")
    return manifest


def _require_named_by_content(root: Path, sums: Mapping[str, str]) -> list[Path]:
    objects = [name for name in sums if name.startswith(f"{OBJECTS}/")]
    for name in objects:
        if name != f"{OBJECTS}/{sums[name][:2]}/{sums[name]}":
            raise damaged(root, f"{name} does not have the hash of its name")
    return [root / name for name in objects]


def _read_sums(root: Path) -> dict[str, str]:
    try:
        text = (root / SUMS).read_text()
        listed = dict(line.split("  ", 1)[::-1] for line in text.splitlines())
    except (OSError, ValueError) as error:
        raise damaged(root, f"{SUMS} cannot be read") from error
    if _sums(listed) != text or not {MANIFEST, DUMP} <= set(listed):
        raise damaged(root, f"{SUMS} is not what it was")
    return listed


def _sums(listed: Mapping[str, str]) -> str:
    return "".join(f"{listed[name]}  {name}\n" for name in sorted(listed))


def _files(root: Path) -> Iterator[str]:
    for parent, _, names in os.walk(root):
        for name in names:
            yield str((Path(parent) / name).relative_to(root))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, name: str) -> Path:
    """Give a sealed backup its final name, durably."""
    final = partial.with_name(name)
    number = 1
    while final.exists():
        number += 1
        final = partial.with_name(f"{name}-{number}")
    partial.rename(final)
    sync(final.parent)
    return final


@contextmanager
def workplace(directory: Path) -> Iterator[None]:
    """Hold a directory of backups alone, and remove what a killed backup has left there.

    Raises StateConflict BACKUP_RUNNING. The kernel gives the lock back however its holder ends.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateConflict("BACKUP_RUNNING", f"another backup is being made in {directory}") from error
        for path in directory.glob(f"{PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def find(directory: Path, text: str) -> Path:
    """Return the backup that a person means: `latest`, a name in the directory, or a path; raises NotFound."""
    known = list(schedule.names(directory))
    if text == "latest":
        if not known:
            raise NotFound("BACKUP_NOT_FOUND", f"there is no backup in {directory}")
        return directory / known[-1]
    for path in (directory / text, Path(text)):
        if path.is_dir():
            return path.resolve()
    raise NotFound("BACKUP_NOT_FOUND", f"there is no backup {text}, neither in {directory} nor as a path")


def prune(directory: Path, keep: int, spare: str = "") -> list[str]:
    """Remove all but the newest `keep` of each kind that is made by itself; what a person made stays, and `spare`."""
    removed = [name for name in outdated(directory, keep) if name != spare]
    for name in removed:
        # Out of sight first: a removal that is interrupted must not leave a good name on half a backup.
        hidden = directory / f"{PARTIAL}{name}"
        (directory / name).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return removed


def outdated(directory: Path, keep: int, to_come: str = "") -> list[str]:
    """List what is beyond the newest `keep` of each kind that is made by itself, once one of `to_come` is added."""
    found = []
    for kind in schedule.KINDS:
        if kind != schedule.MANUAL:
            of_kind = [name for name in schedule.names(directory) if (schedule.parse(name) or ("", ""))[1] == kind]
            found += of_kind[: max(0, len(of_kind) + (kind == to_come) - keep)]
    return found
