"""What is thrown away can be had back: the trash of both drivers, and the youth of what is put again."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path

import pytest

from harness.servers import S3
from korrigo_kit.blobs import BlobStore, open_store
from korrigo_kit.errors import NotFound

CONTENT = b"a page that nobody names any more"
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["files", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "files":
        return open_store((tmp_path / "blobs").as_uri())
    server: S3 = request.getfixturevalue("s3_server")
    return open_store(
        server.prefixed_url(uuid.uuid4().hex),
        endpoint=server.endpoint,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        region=server.region,
    )


def test_discarded_content_is_absent_and_comes_back_whole(store: BlobStore) -> None:
    assert store.touched_at(NAME) is None
    assert not store.recover(NAME)
    store.put_bytes(CONTENT)
    touched_at = store.touched_at(NAME)
    assert touched_at is not None and abs(touched_at - time.time()) < 60
    store.discard(NAME)
    store.discard(NAME)
    assert store.size(NAME) is None and list(store.list()) == []
    with pytest.raises(NotFound, match="BLOB_NOT_FOUND"):
        store.read(NAME)
    assert store.recover(NAME)
    assert store.read(NAME) == CONTENT
    assert not store.recover(NAME)


def test_the_trash_is_emptied_by_age(store: BlobStore) -> None:
    store.put_bytes(CONTENT)
    store.discard(NAME)
    assert store.empty_trash(3600) == 0
    assert store.empty_trash(-5) == 1
    assert not store.recover(NAME)


def test_what_is_destroyed_does_not_come_back_and_the_same_bytes_may_be_put_again(store: BlobStore) -> None:
    store.destroy(NAME)
    store.put_bytes(CONTENT)
    store.destroy(NAME)  # only what lies in the trash
    assert store.read(NAME) == CONTENT
    store.discard(NAME)
    store.put_bytes(CONTENT)
    store.destroy(NAME)
    assert not store.recover(NAME) and store.read(NAME) == CONTENT


def test_damaged_trash_is_not_brought_back(tmp_path: Path) -> None:
    store = open_store((tmp_path / "blobs").as_uri())
    store.put_bytes(CONTENT)
    store.discard(NAME)
    (tmp_path / "blobs" / "trash" / NAME).write_bytes(b"damaged")
    assert not store.recover(NAME)
    assert store.size(NAME) is None


def test_a_new_put_makes_old_content_young(tmp_path: Path) -> None:
    store = open_store((tmp_path / "blobs").as_uri())
    store.put_bytes(CONTENT)
    path = tmp_path / "blobs" / "cas" / NAME[:2] / NAME
    os.utime(path, (1, 1))
    assert store.touched_at(NAME) == 1
    store.put_bytes(CONTENT)
    touched_at = store.touched_at(NAME)
    assert touched_at is not None and touched_at > time.time() - 60
