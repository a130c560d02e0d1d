"""An archive file: made beside its place and moved there when it is whole, verified byte by byte before it counts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from korrigo_kit.errors import Invalid, StateConflict, Unavailable

FORMAT = 1
MANIFEST = "manifest.json"
_PIECE = 1 << 20
# What is read into memory at once; a manifest names every member and every blob.
_MOST_MANIFEST_BYTES = 256 << 20


@dataclass
class Exam:
    """What the manifest says of one exam: how it was, and what of it is to be destroyed."""

    name: str
    date: str
    copies: int
    fingerprint: str
    copy_ids: list[str] = field(default_factory=list)
    event_ids: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Archive:
    """A verified archive."""

    path: Path
    sha256: str
    exams: Mapping[str, Exam]


class Writer:
    """Adds members and remembers what they are."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._hashes: dict[str, str] = {}
        self.exams: dict[str, Exam] = {}

    def text(self, name: str, text: str) -> None:
        """Add a text."""
        data = text.encode()
        self._add(name, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest())

    def file(self, name: str, path: Path, sha256: str) -> None:
        """Add a file whose hash is known and was checked."""
        with path.open("rb") as source:
            self._add(name, source, path.stat().st_size, sha256)

    def _add(self, name: str, source: IO[bytes], size: int, sha256: str) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        self._archive.addfile(member, source)
        self._hashes[name] = sha256

    def manifest(self, about: Mapping[str, Any]) -> None:
        """Add the list of everything; it is the last member, so an archive that has one is whole."""
        exams = {exam_id: asdict(exam) for exam_id, exam in self.exams.items()}
        self.text(MANIFEST, json.dumps({"format": FORMAT, **about, "exams": exams, "sha256": self._hashes}, indent=1))


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Make an archive at a path where none is; raises StateConflict (EXPORT_EXISTS) and Unavailable."""
    if path.exists():
        raise StateConflict("EXPORT_EXISTS", f"{path} is there already and is never written over")
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                yield Writer(archive)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # refuses to replace, unlike rename
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except FileExistsError:
        raise StateConflict("EXPORT_EXISTS", f"{path} is there already and is never written over") from None
    except OSError as error:
        raise Unavailable("EXPORT_NOT_WRITTEN", f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def verified(path: Path) -> Archive:
    """Read an archive to its last byte; raises Invalid (ARCHIVE_DAMAGED) when something is not as it was written."""
    found: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is None:
                        raise _damaged(path, f"{member.name} is no file")
                    if member.name == MANIFEST:
                        manifest = json.loads(content.read(_MOST_MANIFEST_BYTES))
                        continue
                    found[member.name] = _hash(content)
            _hash(stream)  # to the end, where gzip keeps its own sum
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if manifest.get("format") != FORMAT:
        raise _damaged(path, "it has no manifest of this format")
    if found != manifest["sha256"]:
        wrong = sorted(set(found.items()) ^ set(manifest["sha256"].items()))
        raise _damaged(path, f"{wrong[0][0]} is not as it was written")
    with path.open("rb") as file:
        whole = _hash(file)
    return Archive(path, whole, {exam_id: Exam(**facts) for exam_id, facts in manifest["exams"].items()})


def _hash(source: IO[bytes] | gzip.GzipFile) -> str:
    digest = hashlib.sha256()
    while piece := source.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> Invalid:
    return Invalid("ARCHIVE_DAMAGED", f"{path} cannot be relied on, nothing was destroyed: {why}")
