"""The folder driver: round trips, damage, crashes at every system call, full disks."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from korrigo_kit.blobs import Blob, BlobStore, open_store
from korrigo_kit.errors import Bug, Exhausted, Invalid, NotFound, Unavailable

CONTENT = os.urandom(3_000_000)
NAME = hashlib.sha256(CONTENT).hexdigest()
PUT = "import sys; from pathlib import Path; from korrigo_kit.blobs import open_store;\
 print(open_store(sys.argv[1]).put_file(Path(sys.argv[2])).sha256)"

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(folder: Path) -> BlobStore:
    return open_store(folder.as_uri())


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.pdf"
    path.write_bytes(CONTENT)
    return path


def stored(folder: Path) -> Path:
    return folder / "cas" / NAME[:2] / NAME


def temporaries(folder: Path) -> list[Path]:
    return list((folder / "tmp").iterdir())


def test_round_trip(store: BlobStore, folder: Path, scan: Path, tmp_path: Path) -> None:
    assert store.size(NAME) is None
    assert store.put_file(scan) == Blob(NAME, len(CONTENT)) == store.put_bytes(CONTENT)
    assert store.read(NAME) == CONTENT
    assert store.size(NAME) == len(CONTENT)
    assert b"".join(store.stream(NAME)) == CONTENT
    assert b"".join(store.stream(NAME, 5, 1_500_000)) == CONTENT[5:1_500_000]
    assert b"".join(store.stream(NAME, 2_999_990)) == CONTENT[2_999_990:]
    assert b"".join(store.stream(NAME, 5, 5)) == b""
    assert b"".join(store.stream(NAME, len(CONTENT) + 10)) == b""
    empty = store.put_bytes(b"")
    assert store.read(empty.sha256) == b"" == b"".join(store.stream(empty.sha256))
    assert set(store.list()) == {Blob(NAME, len(CONTENT)), empty}
    store.check()
    store.delete(NAME)
    store.delete(NAME)
    assert list(store.list()) == [empty]
    assert temporaries(folder) == []


def test_absent_and_malformed_names_are_not_found(store: BlobStore, tmp_path: Path) -> None:
    for name in (NAME, "../../etc/passwd", "", NAME.upper(), NAME + "\n"):
        with pytest.raises(NotFound, match="BLOB_NOT_FOUND"):
            store.read(name)
        with pytest.raises(NotFound, match="BLOB_NOT_FOUND"):
            store.stream(name)
        with pytest.raises(NotFound, match="BLOB_NOT_FOUND"):
            store.fetch(name, tmp_path / "copy")
        assert store.size(name) is None
        store.delete(name)


def test_modes_keep_others_out(store: BlobStore, folder: Path, scan: Path) -> None:
    store.put_file(scan)
    assert stat.S_IMODE(stored(folder).stat().st_mode) == 0o600
    for path in (folder, folder / "tmp", folder / "cas", folder / "cas" / NAME[:2]):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_fetch_gives_a_private_readable_copy(store: BlobStore, folder: Path, scan: Path, tmp_path: Path) -> None:
    store.put_file(scan)
    copy = store.fetch(NAME, tmp_path / "copy.pdf")
    assert copy.read_bytes() == CONTENT
    assert stat.S_IMODE(copy.stat().st_mode) == 0o644
    assert copy.stat().st_ino != stored(folder).stat().st_ino
    copy.write_bytes(b"scribbled")
    assert store.read(NAME) == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), b""])
def test_damaged_bytes_are_never_served(store: BlobStore, folder: Path, scan: Path, damage: bytes) -> None:
    store.put_file(scan)
    stored(folder).write_bytes(damage)
    with pytest.raises(Bug, match="BLOB_CORRUPTED"):
        store.read(NAME)
    with pytest.raises(Bug, match="BLOB_CORRUPTED"):
        store.stream(NAME)
    dest = scan.with_name("dest")
    dest.write_bytes(b"before")
    with pytest.raises(Bug, match="BLOB_CORRUPTED"):
        store.fetch(NAME, dest)
    assert dest.read_bytes() == b"before"
    assert sorted(path.name for path in dest.parent.iterdir()) == ["blobs", "dest", "scan.pdf"]


def test_a_new_put_heals_a_truncated_blob(store: BlobStore, folder: Path, scan: Path) -> None:
    store.put_file(scan)
    stored(folder).write_bytes(CONTENT[:100])
    store.put_file(scan)
    assert store.read(NAME) == CONTENT


def test_many_writers_of_the_same_content(store: BlobStore, folder: Path, scan: Path) -> None:
    results: list[Blob] = []
    threads = [threading.Thread(target=lambda: results.append(store.put_file(scan))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [Blob(NAME, len(CONTENT))] * 8
    assert store.read(NAME) == CONTENT
    assert temporaries(folder) == []


def test_only_stale_temporaries_are_dropped_at_open(store: BlobStore, folder: Path) -> None:
    old, young = folder / "tmp" / "old", folder / "tmp" / "young"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 90_000,) * 2)
    open_store(folder.as_uri())
    assert temporaries(folder) == [young]


@pytest.mark.parametrize("url", ["", "/tmp/x", "file:x", "file://host/x", "http://x/y", "s3://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Invalid, match="BLOB_STORE_URL"):
        open_store(url)


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="OBJECT_STORE_UNAVAILABLE"):
        open_store((tmp_path / "file" / "blobs").as_uri())


def put_process(folder: Path, scan: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    argv = ["strace", "-f", "-y", "-qq", *strace] if strace else []
    return subprocess.run(
        [*argv, sys.executable, "-c", PUT, folder.as_uri(), str(scan)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_strace
def test_put_syncs_the_file_then_links_then_syncs_the_folder(store: BlobStore, folder: Path, scan: Path) -> None:
    trace = folder.parent / "trace"
    calls = "trace=write,fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat"
    done = put_process(folder, scan, "-o", str(trace), "-e", calls)
    assert done.stdout.strip() == NAME, done.stderr
    steps: list[str] = []
    for line in trace.read_text().splitlines():
        call = re.sub(r"^\d+\s+", "", line)
        if re.match(rf"write\(\d+<{folder}/tmp/", call):
            steps.append("write")
        elif re.match(rf"fsync\(\d+<{folder}/tmp/\w+>\)\s+= 0", call):
            steps.append("fsync file")
        elif re.match(r"link(at)?\(", call) and f"/{NAME[:2]}/{NAME}" in call and call.endswith("= 0"):
            steps.append("link")
        elif re.match(rf"fsync\(\d+<{folder}/cas/{NAME[:2]}>\)\s+= 0", call):
            steps.append("fsync folder")
        elif re.match(rf'unlink(at)?\(.*"{folder}/tmp/', call):
            steps.append("unlink")
    assert [step for step in steps if step != "write"] == ["fsync file", "link", "fsync folder", "unlink"]
    assert steps.index("fsync file") == steps.count("write") > 0


@needs_strace
@pytest.mark.parametrize("call", ["fsync:when=4", "link,linkat:when=1", "fsync:when=5", "unlink,unlinkat:when=1"])
def test_a_kill_at_any_step_leaves_nothing_or_everything(store: BlobStore, folder: Path, scan: Path, call: str) -> None:
    # fsync 1 to 3 belong to opening the store
    names, when = call.split(":")
    done = put_process(folder, scan, "-e", f"trace={names}", "-e", f"inject={names}:signal=KILL:{when}")
    assert done.returncode != 0
    assert NAME not in done.stdout
    if (size := store.size(NAME)) is not None:
        assert size == len(CONTENT)
        assert store.read(NAME) == CONTENT
    assert set(store.list()) <= {Blob(NAME, len(CONTENT))}
    assert put_process(folder, scan).stdout.strip() == NAME
    assert store.read(NAME) == CONTENT


@needs_strace
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("fsync:error=ENOSPC:when=4", "DISK_FULL"),
        ("link,linkat:error=EDQUOT:when=1", "DISK_FULL"),
        ("fsync:error=EIO:when=4", "OBJECT_STORE_UNAVAILABLE"),
        ("fsync:error=EIO:when=5", "OBJECT_STORE_UNAVAILABLE"),
        ("link,linkat:error=EROFS:when=1", "OBJECT_STORE_UNAVAILABLE"),
    ],
)
def test_a_failing_disk_is_told_and_never_reported_as_stored(
    store: BlobStore, folder: Path, scan: Path, fault: str, reason: str
) -> None:
    names = fault.split(":")[0]
    done = put_process(folder, scan, "-e", f"trace={names}", "-e", f"inject={fault}")
    assert reason in done.stderr
    assert NAME not in done.stdout
    assert temporaries(folder) == []
    assert put_process(folder, scan).stdout.strip() == NAME
    assert store.read(NAME) == CONTENT


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("MOUNT REFUSED: a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@needs_root
def test_a_full_disk_is_507_and_leaves_room(small_disk: Path, scan: Path) -> None:
    store = open_store((small_disk / "blobs").as_uri())
    first = store.put_file(scan)
    with pytest.raises(Exhausted, match="DISK_FULL") as caught:
        store.put_bytes(os.urandom(3_000_000))
    assert caught.value.status == 507
    assert temporaries(small_disk / "blobs") == []
    assert list(store.list()) == [first]
    store.put_bytes(b"small again")


def test_a_big_file_is_stored_in_constant_memory(folder: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(300 << 20)
    code = "import resource, sys; from pathlib import Path; from korrigo_kit.blobs import open_store;\
 s = open_store(sys.argv[1]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;\
 b = s.put_file(Path(sys.argv[2])); s.fetch(b.sha256, Path(sys.argv[2] + '.copy')); sum(map(len, s.stream(b.sha256)));\
 print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    done = subprocess.run(
        [sys.executable, "-c", code, folder.as_uri(), str(big)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16 << 10  # KiB
