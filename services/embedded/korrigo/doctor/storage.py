"""Disks, the object store and the backups."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from korrigo.doctor.causes import LIKELY, POSSIBLE, SEEN, Blind, Cause, Found, Remedy, size, span
from korrigo.doctor.lines import quote
from korrigo.doctor.patient import Patient, within
from korrigo_kit.errors import KorrigoError, NotFound

# DiskSpaceLow, DiskSpaceCritical and BackupTooOld (operations.md 2).
LOW, CRITICAL = 0.10, 0.05
_BACKUP_SECONDS = 26 * 3600
_STORE_SECONDS = 8
# So little is full, whatever share it is.
_FULL_BYTES = 16 << 20
# Younger lines about a lack of room are about now.
_GOES_ON = timedelta(minutes=1)


def _disk_full(patient: Patient) -> Found | None:
    full: dict[str, tuple[float, str]] = {}
    for name, folder in patient.volumes.items():
        share, text = _room(folder)
        if share < LOW:
            full[name] = (share, f"{name} ({folder}): {text}")
    said = patient.lines.having("DISK_FULL", "No space left on device", "Errno 28")
    if full:
        worst = min(share for share, _ in full.values())
        certainty = SEEN + (0.07 if worst < CRITICAL else 0)
        return Found(certainty, (*(text for _, text in full.values()), *(quote(line) for line in said[-2:])))
    if not said:
        return None
    # There is room again, or it is a disk that only the product's own processes see.
    text = f"{len(said)} times within 15 min there was no room"
    goes_on = datetime.now(UTC) - said[-1]["at"] < _GOES_ON
    return Found(LIKELY + 0.1 if goes_on else POSSIBLE, (text, *(quote(line) for line in said[-2:])))


def _room(folder: Path) -> tuple[float, str]:
    found = os.statvfs(folder)
    free, whole = found.f_bavail * found.f_frsize, max(1, found.f_blocks * found.f_frsize)
    text = f"{size(free)} free of {size(whole)}"
    shares = [0.0 if free < _FULL_BYTES else free / whole]
    if found.f_files:
        shares.append(found.f_favail / found.f_files)
        if shares[1] < LOW:
            text += f", {found.f_favail} inodes free of {found.f_files}"
    return min(shares), text


def _object_store_down(patient: Patient) -> Found | None:
    address = urlsplit(patient.settings.blobs.url)
    if address.scheme == "file":
        text = _folder_problem(Path(unquote(address.path)))
    elif address.scheme == "s3":
        text = _bucket_problem(patient)
    else:
        raise Blind("KORRIGO_BLOBS__URL is not set")
    return Found(SEEN + 0.08, (text,)) if text else None


def _folder_problem(folder: Path) -> str:
    if not folder.is_dir():
        return f"the folder of the blobs is missing: {folder}"
    needed = os.R_OK | os.W_OK | os.X_OK
    if not os.access(folder, needed):
        return f"the folder of the blobs cannot be written by this user: {folder}"
    cas = folder / "cas"
    return "" if not cas.exists() or os.access(cas, needed) else f"{cas} cannot be written by this user"


def _bucket_problem(patient: Patient) -> str:
    """Write, read and delete a small object of random bytes, which no room can ever name."""
    from korrigo_kit.blobs import open_store

    given = patient.settings.blobs
    data = b"korrigo doctor " + secrets.token_bytes(24)

    def probe() -> str:
        try:
            store = open_store(
                given.url,
                endpoint=given.endpoint,
                access_key_id=given.access_key_id.get_secret_value() if given.access_key_id else None,
                secret_access_key=given.secret_access_key.get_secret_value() if given.secret_access_key else None,
                region=given.region,
            )
            blob = store.put_bytes(data)
            try:
                is_same = store.read(blob.sha256) == data
            finally:
                store.delete(blob.sha256)
        except NotFound:
            return "the store lost what was just written"
        except KorrigoError as error:
            return f"{given.endpoint or given.url}: {error.message}"
        return "" if is_same else "the store gives back other bytes than it was given"

    try:
        return within(_STORE_SECONDS, "the object store", probe)
    except Blind as blind:
        return f"{given.endpoint or given.url}: {blind}"


_BACKUP = """
SELECT extract(epoch FROM clock_timestamp() - coalesce((SELECT beat_at FROM heartbeats WHERE name = 'backup'),
           (SELECT min(created_at) FROM users WHERE is_system)))::float8 AS age,
       EXISTS (SELECT 1 FROM heartbeats WHERE name = 'backup') AS is_made
"""


def _backup_too_old(patient: Patient) -> Found | None:
    row = patient.row(_BACKUP, room="grading")
    if row["age"] <= _BACKUP_SECONDS:
        return None
    text = f"the last good backup is {span(row['age'])} old" if row["is_made"] else "there is no good backup at all"
    said = patient.lines.where(lambda line: "backup" in str(line.get("message", "")) and line.get("level") == "ERROR")
    return Found(SEEN, (text, *(quote(line) for line in said[-2:])))


CAUSES = (
    Cause(
        "disk-full",
        "A disk is full",
        ("storage", "import-stuck", "finalization-failing", "database", "high-latency", "web"),
        _disk_full,
        (
            Remedy("korrigo cleanup_temp_files", "Remove leftovers of crashes and of uploads that were never finished.",
                   "korrigo cleanup_temp_files --dry-run"),
            Remedy("korrigo cleanup_orphaned_files", "Move to the trash what no room names any more.",
                   "korrigo cleanup_orphaned_files --dry-run"),
            Remedy("korrigo retry_failed_tasks --kind import --since 24h", "Afterwards: import again what failed.",
                   "korrigo retry_failed_tasks --kind import --since 24h --dry-run"),
        ),
        "disk-space",
    ),
    Cause(
        "object-store-down",
        "The object store cannot be used",
        ("storage", "import-stuck", "finalization-failing", "web"),
        _object_store_down,
        (
            Remedy("korrigo config show", "Check KORRIGO_BLOBS__URL and keys; jobs wait and go on by themselves."),
            Remedy("korrigo doctor scenario storage", "Afterwards: see that it can be written again."),
        ),
        "object-store",
    ),
    Cause(
        "backup-too-old",
        "There is no recent good backup",
        ("storage", "monitoring"),
        _backup_too_old,
        (
            Remedy("korrigo backup create", "Make one now; it is restored for a trial before it counts."),
            Remedy("korrigo backup list", "See what there is."),
        ),
        "backup-too-old",
    ),
)  # fmt: skip
