"""Blobs in a folder of this machine, and what both drivers of `kit.blobs` share: hashes, chunks, copies.

obstore's own file driver does not fsync, hence our writer (reliability.md 7):
temporary file -> fsync -> link to the content name -> fsync of the folder -> unlink of the temporary name.
A crash between any two of these leaves either nothing or the whole content under its name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from korrigo_kit.errors import Bug, Exhausted, NotFound, Unavailable

CHUNK_BYTES = 1 << 20
# A temporary file older than this belongs to a process that died (an upload may take hours, not a day).
STALE_TEMPORARY_SECONDS = 86_400
SHA256_NAME = re.compile(r"[0-9a-f]{64}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Blob:
    """Name and size in bytes of stored content."""

    sha256: str
    size: int


class FileStore:
    """Blobs in a folder of this machine, 0600 files in 0700 folders."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cas = root / "cas"
        self._temporary = root / "tmp"
        self._trash = root / "trash"
        with disk_errors():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._temporary.mkdir(mode=0o700, exist_ok=True)
            self._cas.mkdir(mode=0o700, exist_ok=True)
            # All folders exist and are on disk before the first put, which then has one folder to fsync.
            for number in range(256):
                (self._cas / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            for folder in (self._cas, root, root.parent):
                _fsync_folder(folder)
            self._drop_stale_temporaries()

    def put_file(self, path: Path) -> Blob:
        with path.open("rb") as source:
            return self._put(source)

    def put_bytes(self, data: bytes) -> Blob:
        return self._put(io.BytesIO(data))

    def read(self, sha256: str) -> bytes:
        with disk_errors(), self._open(sha256) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise corrupted(sha256)
        return data

    def fetch(self, sha256: str, dest: Path) -> Path:
        # A copy and never a hard link: whoever may write to the copy must not reach the stored bytes.
        with disk_errors(), self._open(sha256) as file:
            return write_verified(chunks(file), sha256, dest)

    def stream(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return primed(self._stream(sha256, start, end))

    def size(self, sha256: str) -> int | None:
        with disk_errors():
            try:
                return self._path(sha256).stat().st_size
            except (NotFound, FileNotFoundError):
                return None

    def delete(self, sha256: str) -> None:
        with disk_errors(), contextlib.suppress(NotFound):
            path = self._path(sha256)
            path.unlink(missing_ok=True)
            _fsync_folder(path.parent)

    def list(self) -> Iterator[Blob]:
        with disk_errors():
            for folder in sorted(self._cas.iterdir()):
                for path in sorted(folder.iterdir()):
                    if SHA256_NAME.fullmatch(path.name):
                        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                            yield Blob(path.name, path.stat().st_size)

    def touched_at(self, sha256: str) -> float | None:
        with disk_errors():
            try:
                return self._path(sha256).stat().st_mtime
            except (NotFound, FileNotFoundError):
                return None

    def discard(self, sha256: str) -> None:
        with disk_errors(), contextlib.suppress(FileNotFoundError, NotFound):
            path = self._path(sha256)
            self._trash.mkdir(mode=0o700, exist_ok=True)
            kept = self._trash / sha256
            before = path.stat().st_mtime
            os.replace(path, kept)
            if kept.stat().st_mtime != before:  # stored again in this very moment
                os.replace(kept, path)
            else:
                os.utime(kept)  # from now on its age in the trash
            for folder in (path.parent, self._trash):
                _fsync_folder(folder)

    def recover(self, sha256: str) -> bool:
        with disk_errors():
            kept = self._trash / Path(content_key(sha256)).name
            try:
                with kept.open("rb") as source:
                    if hash_of(source) != sha256:
                        return False
                    source.seek(0)
                    self._put(source)
            except FileNotFoundError:
                return False
            kept.unlink(missing_ok=True)
            return True

    def destroy(self, sha256: str) -> None:
        with disk_errors(), contextlib.suppress(NotFound):
            (self._trash / Path(content_key(sha256)).name).unlink(missing_ok=True)
            if self._trash.exists():
                _fsync_folder(self._trash)

    def empty_trash(self, older_than_seconds: float) -> int:
        limit, removed = time.time() - older_than_seconds, 0
        with disk_errors():
            for path in self._trash.iterdir() if self._trash.exists() else ():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < limit:
                        path.unlink()
                        removed += 1
        return removed

    def check(self) -> None:
        with disk_errors():
            if not os.access(self._temporary, os.W_OK) or not os.access(self._cas, os.W_OK | os.X_OK):
                raise Unavailable("OBJECT_STORE_UNAVAILABLE", "The blob folder is not writable.")

    def _put(self, source: IO[bytes]) -> Blob:
        digest = hashlib.sha256()
        size = 0
        temporary = self._temporary / uuid.uuid4().hex
        with disk_errors():
            try:
                with open(temporary, "xb", buffering=0, opener=_private_opener) as file:
                    for chunk in chunks(source):
                        digest.update(chunk)
                        size += len(chunk)
                        write_all(file, chunk)
                    os.fsync(file.fileno())
                blob = Blob(digest.hexdigest(), size)
                self._link(temporary, blob)
            finally:
                temporary.unlink(missing_ok=True)
        return blob

    def _link(self, temporary: Path, blob: Blob) -> None:
        final = self._path(blob.sha256)
        while True:
            try:
                os.link(temporary, final)
            except FileExistsError:
                try:
                    if final.stat().st_size != blob.size:  # damaged; we hold the right bytes, so heal it
                        os.replace(temporary, final)
                    else:
                        os.utime(final)  # young again: the orphan sweep leaves alone what somebody just stored
                except FileNotFoundError:  # deleted between link and stat
                    continue
            # Also when it was there: its writer may have died before its own fsync of the folder.
            return _fsync_folder(final.parent)

    def _stream(self, sha256: str, start: int, end: int | None) -> Generator[bytes]:
        with disk_errors(), self._open(sha256) as file:
            total = os.fstat(file.fileno()).st_size
            stop = total if end is None else min(end, total)
            if start == 0 and stop == total and hash_of(file) != sha256:
                raise corrupted(sha256)
            file.seek(start)
            yield b""
            while (left := stop - file.tell()) > 0:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise corrupted(sha256)
                yield chunk

    def _open(self, sha256: str) -> IO[bytes]:
        try:
            return self._path(sha256).open("rb", buffering=0)
        except FileNotFoundError:
            raise not_found(sha256) from None

    def _path(self, sha256: str) -> Path:
        return self._root / content_key(sha256)

    def _drop_stale_temporaries(self) -> None:
        limit = time.time() - STALE_TEMPORARY_SECONDS
        for path in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                if path.stat().st_mtime < limit:
                    path.unlink()


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


class Writable(Protocol):
    """A raw file may write less than it was given."""

    def write(self, data: bytes | memoryview, /) -> int | None: ...


def content_key(sha256: str) -> str:
    """Return the key of a blob; a name that is no hash (a path, say) is not found."""
    if not SHA256_NAME.fullmatch(sha256):
        raise not_found(sha256)
    return f"cas/{sha256[:2]}/{sha256}"


def not_found(sha256: str) -> NotFound:
    """Make the error of an absent blob."""
    return NotFound("BLOB_NOT_FOUND", "The stored content does not exist.", sha256=sha256[:64])


def corrupted(sha256: str) -> Bug:
    """Make the error of a blob whose bytes are not those of its name."""
    return Bug("BLOB_CORRUPTED", "The stored content is damaged.", sha256=sha256)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn errors of the file system into Exhausted DISK_FULL (507) or Unavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Exhausted("DISK_FULL", "The disk is full.", status=507) from error
        raise Unavailable("OBJECT_STORE_UNAVAILABLE", "The blob folder cannot be used now.") from error


def chunks(source: Readable) -> Iterator[bytes]:
    """Yield the rest of a file in pieces of 1 MiB at most."""
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def hash_of(source: Readable) -> str:
    """Return the SHA-256 of the rest of a file, in constant memory."""
    digest = hashlib.sha256()
    for chunk in chunks(source):
        digest.update(chunk)
    return digest.hexdigest()


def copy_verified(pieces: Iterable[bytes], sha256: str, dest: Writable) -> None:
    """Write the pieces, raising Bug BLOB_CORRUPTED unless they have this hash."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        write_all(dest, piece)
    if digest.hexdigest() != sha256:
        raise corrupted(sha256)


def write_verified(pieces: Iterable[bytes], sha256: str, dest: Path) -> Path:
    """Write `dest` (0644) from verified pieces; with any error it is left as it was."""
    part = dest.with_name(f".{dest.name}.{uuid.uuid4().hex}")
    try:
        with part.open("xb", buffering=0) as file:
            copy_verified(pieces, sha256, file)
            os.fchmod(file.fileno(), 0o644)
        os.replace(part, dest)
    finally:
        part.unlink(missing_ok=True)
    return dest


def write_all(file: Writable, data: bytes) -> None:
    """Write everything to a raw file, which may take it in pieces."""
    view = memoryview(data)
    while view:
        written = file.write(view)
        view = view[written or 0 :]


def primed(pieces: Generator[bytes]) -> Generator[bytes]:
    """Run a generator to its first (empty) yield, so that its checks fail here and not at the first chunk."""
    next(pieces)
    return pieces


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
