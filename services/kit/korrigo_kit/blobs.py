"""Content-addressed bytes: scans, page images, manifests and final PDFs live here under their SHA-256.

Every room stores blobs through `open_store`; rows keep only the hash, and `blob_refs` says who needs it.
Keys are `cas/<sha[:2]>/<sha>` on both drivers. A key is written once and never changes, so a put of bytes
that are there already is a success and every put may be repeated.

    FileStore   a folder of this machine (kit.blob_files): written, fsynced, then linked to its name.
    S3Store     any S3 server, through obstore (imported only here, and only when used).

Failures of a store (refused connection, 5xx, EIO, read-only volume) are Unavailable
"OBJECT_STORE_UNAVAILABLE" and thus retried; a full disk is Exhausted "DISK_FULL" (507); bytes that do not
have the hash of their name are Bug "BLOB_CORRUPTED" and are never handed out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import unquote, urlsplit

from korrigo_kit.blob_files import (
    CHUNK_BYTES,
    SHA256_NAME,
    Blob,
    FileStore,
    chunks,
    content_key,
    copy_verified,
    corrupted,
    disk_errors,
    hash_of,
    not_found,
    primed,
    write_verified,
)
from korrigo_kit.errors import Invalid, NotFound, StateConflict, Unavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

__all__ = ["Blob", "BlobStore", "FileStore", "S3Store", "open_store"]

# One PUT carries If-None-Match and is the cheapest, but is held in memory; above this, parts of 8 MiB.
SINGLE_PUT_BYTES = 8 << 20
# Bounds the memory of an upload to 24 MiB.
PARTS_AT_ONCE = 3
# Content older than this is written again by a put, so that the orphan sweep (24 h) sees that it is wanted.
YOUNG_SECONDS = 3600


class BlobStore(Protocol):
    """What the rooms see; both drivers are safe to share between threads."""

    def put_file(self, path: Path) -> Blob:
        """Store a file in constant memory; it is durable when this returns."""
        ...

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes; they are durable when this returns."""
        ...

    def read(self, sha256: str) -> bytes:
        """Return the verified content. Raises NotFound BLOB_NOT_FOUND, Bug BLOB_CORRUPTED."""
        ...

    def fetch(self, sha256: str, dest: Path) -> Path:
        """Write a verified private copy to `dest` (mode 0644, so that a sandboxed child can read it)."""
        ...

    def stream(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) in chunks.

        Absence raises here, not at the first chunk. A whole blob is verified before its first byte is
        handed out; a part of one is not verified (compare `size` with the row instead).
        """
        ...

    def size(self, sha256: str) -> int | None:
        """Return the size in bytes, None when absent."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove the content at once; absent is fine. The orphan sweep uses `discard`."""
        ...

    def touched_at(self, sha256: str) -> float | None:
        """Return when the content was last put (Unix seconds of the store's clock), None when absent."""
        ...

    def discard(self, sha256: str) -> None:
        """Move the content to the trash; absent is fine. Only the orphan sweep calls this."""
        ...

    def recover(self, sha256: str) -> bool:
        """Bring the content back from the trash; False when it is not there or is damaged."""
        ...

    def empty_trash(self, older_than_seconds: float) -> int:
        """Remove what has lain in the trash for so long; returns how many."""
        ...

    def destroy(self, sha256: str) -> None:
        """Remove the content from the trash for good; absent is fine. Only archiving calls this."""
        ...

    def list(self) -> Iterator[Blob]:
        """Yield everything stored, in the order of the names."""
        ...

    def check(self) -> None:
        """Raise Unavailable unless the store answers now; readiness calls it."""
        ...


def open_store(
    url: str,
    *,
    endpoint: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    region: str | None = None,
) -> BlobStore:
    """Open `file:///folder` (made when missing) or `s3://bucket[/prefix]`.

    Raises Invalid BLOB_STORE_URL for any other URL. Without keys, S3 uses the credentials of the machine.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FileStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(
            parts.netloc,
            prefix=unquote(parts.path).strip("/"),
            endpoint=endpoint,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            region=region,
        )
    raise Invalid("BLOB_STORE_URL", "The blob store must be file:///folder or s3://bucket[/prefix].")


class S3Store:
    """Blobs in a bucket; create it after a spawn, never before a fork (the client has threads)."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        region: str | None = None,
    ) -> None:
        import obstore
        from obstore.store import S3Store as Client

        self._api = obstore
        self._prefix = f"{prefix}/" if prefix else ""
        given = {
            "endpoint": endpoint,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "region": region,
        }
        # The server checks each body against this hash before it keeps it.
        config: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        config["checksum_algorithm"] = "SHA256"
        typed = cast("S3Config", config)
        options: ClientConfig = {
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": "2s",
            "read_timeout": "15s",
            "timeout": "300s",  # 100 MB at 3 Mbit/s; a stalled transfer ends by read_timeout
        }
        # Short, because jobs have their own backoff and a REST caller is waiting.
        retry: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
        self._store: ObjectStore = Client(bucket, config=typed, client_options=options, retry_config=retry)

    def put_file(self, path: Path) -> Blob:
        with path.open("rb") as source:
            blob = Blob(hash_of(source), os.fstat(source.fileno()).st_size)
            source.seek(0)
            if blob.size <= SINGLE_PUT_BYTES:
                return self._put_small(blob, source.read())
            if not self._is_stored(blob):
                self._put_large(blob, source)
            return blob

    def put_bytes(self, data: bytes) -> Blob:
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        if blob.size <= SINGLE_PUT_BYTES:
            return self._put_small(blob, data)
        if not self._is_stored(blob):
            self._put_large(blob, io.BytesIO(data))
        return blob

    def read(self, sha256: str) -> bytes:
        key = self._name(sha256)
        with self._errors(sha256):
            data = bytes(self._api.get(self._store, key).bytes())
        if hashlib.sha256(data).hexdigest() != sha256:
            raise corrupted(sha256)
        return data

    def fetch(self, sha256: str, dest: Path) -> Path:
        with disk_errors():
            return write_verified(self._get(sha256, 0, None), sha256, dest)

    def stream(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if start == 0 and end is None:
            return primed(self._stream_whole(sha256))
        return primed(self._get(sha256, start, end))

    def size(self, sha256: str) -> int | None:
        try:
            key = self._name(sha256)
            with self._errors(sha256):
                return self._api.head(self._store, key)["size"]
        except NotFound:
            return None

    def delete(self, sha256: str) -> None:
        with contextlib.suppress(NotFound):
            key = self._name(sha256)
            with self._errors(sha256):
                self._api.delete(self._store, key)

    def list(self) -> Iterator[Blob]:
        with self._errors(None):
            for page in self._api.list(self._store, prefix=f"{self._prefix}cas/"):
                for item in page:
                    name = item["path"].rpartition("/")[2]
                    if SHA256_NAME.fullmatch(name):
                        yield Blob(name, item["size"])

    def check(self) -> None:
        with self._errors(None):
            next(iter(self._api.list(self._store, prefix=f"{self._prefix}cas/", chunk_size=1)), None)

    def _name(self, sha256: str) -> str:
        return self._prefix + content_key(sha256)

    def touched_at(self, sha256: str) -> float | None:
        try:
            key = self._name(sha256)
            with self._errors(sha256):
                return float(self._api.head(self._store, key)["last_modified"].timestamp())
        except NotFound:
            return None

    def discard(self, sha256: str) -> None:
        with contextlib.suppress(NotFound):
            key = self._name(sha256)
            before = self.touched_at(sha256)
            with self._errors(sha256):
                self._api.copy(self._store, key, f"{self._prefix}trash/{sha256}")
                if self.touched_at(sha256) == before:  # else stored again in this very moment
                    self._api.delete(self._store, key)

    def recover(self, sha256: str) -> bool:
        kept = f"{self._prefix}trash/{Path(content_key(sha256)).name}"
        try:
            with self._errors(sha256):
                data = bytes(self._api.get(self._store, kept).bytes())
        except NotFound:
            return False
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        self.put_bytes(data)
        with self._errors(None):
            self._api.delete(self._store, kept)
        return True

    def destroy(self, sha256: str) -> None:
        with contextlib.suppress(NotFound), self._errors(sha256):
            self._api.delete(self._store, f"{self._prefix}trash/{Path(content_key(sha256)).name}")

    def empty_trash(self, older_than_seconds: float) -> int:
        limit, old = time.time() - older_than_seconds, []
        with self._errors(None):
            for page in self._api.list(self._store, prefix=f"{self._prefix}trash/"):
                old += [item["path"] for item in page if item["last_modified"].timestamp() < limit]
            for path in old:
                self._api.delete(self._store, path)
        return len(old)

    def _is_stored(self, blob: Blob) -> bool:
        """Tell whether the content is there and young; a new put makes what the orphan sweep may look at young."""
        touched_at = self.touched_at(blob.sha256)
        is_young = touched_at is not None and touched_at > time.time() - YOUNG_SECONDS
        return is_young and self.size(blob.sha256) == blob.size

    def _put_small(self, blob: Blob, data: bytes) -> Blob:
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            raise _changed()
        key = self._name(blob.sha256)
        exists = self._api.exceptions.AlreadyExistsError
        with self._errors(None):
            try:
                self._api.put(self._store, key, data, mode="create", use_multipart=False)
            except exists:
                if not self._is_stored(blob):  # damaged or old: heal it, make it young
                    self._api.put(self._store, key, data, mode="overwrite", use_multipart=False)
        return blob

    def _put_large(self, blob: Blob, source: IO[bytes]) -> None:
        # No server takes a condition on every multipart upload; the same name always gets the same bytes
        # anyway, and the object appears only when its last part is complete.
        with self._errors(None):
            self._api.put(
                self._store,
                self._name(blob.sha256),
                _unchanged(source, blob.sha256),
                use_multipart=True,
                chunk_size=SINGLE_PUT_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    def _get(self, sha256: str, start: int, end: int | None) -> Generator[bytes]:
        key = self._name(sha256)
        with self._errors(sha256):
            total = self._api.head(self._store, key)["size"]
            stop = total if end is None else min(end, total)
            yield b""
            if start < stop:
                reply = self._api.get(self._store, key, options={"range": (start, stop)})
                for chunk in reply.stream(min_chunk_size=CHUNK_BYTES):
                    yield bytes(chunk)

    def _stream_whole(self, sha256: str) -> Generator[bytes]:
        # Verified before the first byte goes out, so through a file once it is more than a few MiB.
        with disk_errors(), tempfile.SpooledTemporaryFile(max_size=4 * CHUNK_BYTES) as spool:
            copy_verified(self._get(sha256, 0, None), sha256, spool)
            spool.seek(0)
            yield b""
            yield from chunks(spool)

    @contextlib.contextmanager
    def _errors(self, sha256: str | None) -> Iterator[None]:
        """Turn obstore's errors into ours; without a hash, "not found" means the bucket."""
        known = self._api.exceptions
        try:
            yield
        except (FileNotFoundError, known.NotFoundError) as error:
            if sha256:
                self.check()  # HEAD answers 404 for a missing bucket too, which must not look like a lost blob
                raise not_found(sha256) from error
            raise Unavailable("OBJECT_STORE_UNAVAILABLE", "The bucket does not exist.") from error
        except known.BaseError as error:
            raise Unavailable("OBJECT_STORE_UNAVAILABLE", "The object store does not answer.") from error


def _unchanged(source: IO[bytes], sha256: str) -> Iterator[bytes]:
    """Yield a file and fail at its end, before the upload is completed, when it is not what was announced."""
    digest = hashlib.sha256()
    for chunk in chunks(source):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise _changed()


def _changed() -> StateConflict:
    return StateConflict("SOURCE_CHANGED", "The file changed while it was stored.")
