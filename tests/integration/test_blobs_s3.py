"""The S3 driver against a real server: round trips, conditions, multipart, damage, a dead server."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from harness.processes import free_port
from harness.servers import S3
from korrigo_kit.blobs import Blob, BlobStore, S3Store, open_store
from korrigo_kit.errors import Bug, KorrigoError, NotFound, StateConflict, Unavailable

SMALL = os.urandom(300_000)
LARGE = os.urandom(21_000_000)


def open_s3(server: S3, url: str, *, endpoint: str | None = None, secret: str | None = None) -> BlobStore:
    return open_store(
        url,
        endpoint=endpoint or server.endpoint,
        access_key_id=server.access_key_id,
        secret_access_key=secret or server.secret_access_key,
        region=server.region,
    )


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def store(s3_server: S3, prefix: str) -> BlobStore:
    return open_s3(s3_server, s3_server.prefixed_url(prefix))


def stored(server: S3, prefix: str, blob: Blob) -> Path:
    return server.folder / "objects" / server.bucket / prefix / "cas" / blob.sha256[:2] / blob.sha256


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_round_trip(store: BlobStore, tmp_path: Path, content: bytes) -> None:
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
    source = tmp_path / "source"
    source.write_bytes(content)
    assert store.size(blob.sha256) is None
    assert store.put_file(source) == blob == store.put_bytes(content) == store.put_file(source)
    assert store.size(blob.sha256) == len(content)
    assert store.read(blob.sha256) == content
    assert b"".join(store.stream(blob.sha256)) == content
    assert b"".join(store.stream(blob.sha256, 10, 200_000)) == content[10:200_000]
    assert b"".join(store.stream(blob.sha256, max(len(content) - 7, 0))) == content[-7:]
    copy = store.fetch(blob.sha256, tmp_path / "copy")
    assert copy.read_bytes() == content
    assert stat.S_IMODE(copy.stat().st_mode) == 0o644
    assert list(store.list()) == [blob]
    store.check()
    store.delete(blob.sha256)
    store.delete(blob.sha256)
    assert list(store.list()) == []


def test_absent_is_not_found(store: BlobStore, tmp_path: Path) -> None:
    for name in (hashlib.sha256(b"absent").hexdigest(), "../other"):
        with pytest.raises(NotFound, match="BLOB_NOT_FOUND"):
            store.read(name)
        with pytest.raises(NotFound, match="BLOB_NOT_FOUND"):
            store.stream(name)
        with pytest.raises(NotFound, match="BLOB_NOT_FOUND"):
            store.fetch(name, tmp_path / "copy")
        assert store.size(name) is None


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_damaged_bytes_are_never_served_and_a_new_put_heals(
    s3_server: S3, store: BlobStore, prefix: str, tmp_path: Path, content: bytes
) -> None:
    blob = store.put_bytes(content)
    with stored(s3_server, prefix, blob).open("r+b") as file:
        file.truncate(len(content) - 1)
    with pytest.raises(KorrigoError) as read:
        store.read(blob.sha256)
    assert isinstance(read.value, Bug | Unavailable)
    with pytest.raises(KorrigoError):
        store.stream(blob.sha256)
    with pytest.raises(KorrigoError):
        store.fetch(blob.sha256, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
    store.put_bytes(content)
    assert store.read(blob.sha256) == content


def test_flipped_bits_are_corruption(s3_server: S3, store: BlobStore, prefix: str) -> None:
    blob = store.put_bytes(SMALL)
    with stored(s3_server, prefix, blob).open("r+b") as file:
        file.write(bytes([SMALL[0] ^ 1]))
    with pytest.raises(Bug, match="BLOB_CORRUPTED"):
        store.read(blob.sha256)
    with pytest.raises(Bug, match="BLOB_CORRUPTED"):
        store.stream(blob.sha256)


def test_two_prefixes_do_not_see_each_other(s3_server: S3, store: BlobStore, prefix: str) -> None:
    blob = store.put_bytes(SMALL)
    other = open_s3(s3_server, s3_server.prefixed_url(prefix + "x"))
    assert other.size(blob.sha256) is None
    assert list(other.list()) == []


def test_a_file_that_changes_under_a_large_upload_is_not_stored(s3_server: S3, store: BlobStore, prefix: str) -> None:
    assert isinstance(store, S3Store)
    announced = Blob(hashlib.sha256(LARGE).hexdigest(), len(LARGE))
    with pytest.raises(StateConflict, match="SOURCE_CHANGED"):
        store._put_large(announced, io.BytesIO(LARGE[:-1] + b"!"))
    assert list(store.list()) == []


def test_a_missing_bucket_is_not_a_missing_blob(s3_server: S3) -> None:
    store = open_s3(s3_server, "s3://no-such-bucket")
    name = hashlib.sha256(b"absent").hexdigest()
    for act in (
        store.check,
        lambda: store.put_bytes(b"x"),
        lambda: store.read(name),
        lambda: store.stream(name),
        lambda: store.size(name),
    ):
        with pytest.raises(Unavailable, match="OBJECT_STORE_UNAVAILABLE"):
            act()


def test_a_dead_server_and_a_wrong_key_are_unavailable(s3_server: S3, tmp_path: Path) -> None:
    dead = open_s3(s3_server, s3_server.url, endpoint=f"http://127.0.0.1:{free_port()}")
    wrong = open_s3(s3_server, s3_server.url, secret="not-the-secret")
    name = hashlib.sha256(b"absent").hexdigest()
    for store in (dead, wrong):
        started = time.monotonic()
        for act in (
            store.check,
            lambda store=store: store.put_bytes(b"x"),
            lambda store=store: store.put_bytes(LARGE),
            lambda store=store: store.read(name),
            lambda store=store: store.size(name),
            lambda store=store: store.stream(name),
            lambda store=store: store.fetch(name, tmp_path / "copy"),
            lambda store=store: list(store.list()),
        ):
            with pytest.raises(Unavailable, match="OBJECT_STORE_UNAVAILABLE"):
                act()
        assert time.monotonic() - started < 30


def test_a_file_is_uploaded_in_bounded_memory(s3_server: S3, prefix: str, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(200 << 20)
    code = """
import resource, sys
from pathlib import Path
from korrigo_kit.blobs import open_store
store = open_store(sys.argv[1], endpoint=sys.argv[2], access_key_id=sys.argv[3], secret_access_key=sys.argv[4],
                   region="us-east-1")
store.put_bytes(b"warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blob = store.put_file(Path(sys.argv[5]))
store.fetch(blob.sha256, Path(sys.argv[5] + ".copy"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    argv = [s3_server.prefixed_url(prefix), s3_server.endpoint, s3_server.access_key_id, s3_server.secret_access_key]
    done = subprocess.run([sys.executable, "-c", code, *argv, str(big)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 96 << 10  # KiB: parts in flight and their copies
