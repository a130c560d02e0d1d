"""Smaller copies of page pictures, made in the sandbox when first asked for and kept for a while in the spool."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from korrigo_ingest.errors import of_engine
from korrigo_ingest.settings import ImportSettings, UploadSettings
from korrigo_kit.ids import new_id
from korrigo_kit.room import Runtime
from korrigo_kit.sandbox import EngineError, Limits
from korrigo_kit.scratch import scratch_folder

KEEP_SECONDS = 24 * 3600
_WALL_SECONDS = 10.0


def spool(rt: Runtime) -> Path:
    """Return the folder of uploads being received and of scaled pictures, made when it is missing."""
    configured = rt.settings.get(UploadSettings).spool
    folder = Path(configured) if configured else Path(tempfile.gettempdir()) / f"korrigo-spool-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def scaled(rt: Runtime, sha256: str, width: int) -> Path:
    """Return a file with the picture at most `width` pixels wide; raises NotFound, Timeout."""
    kept = spool(rt) / f"picture-{sha256}-{width}.jpg"
    if not kept.exists():
        with scratch_folder("scale") as name:
            folder = Path(name)
            rt.blobs.fetch(sha256, folder / "picture.jpg")
            made = _scale(rt, folder, width)
            part = kept.with_suffix(f".{new_id()}")
            part.write_bytes((folder / made).read_bytes())
            part.rename(kept)
    return kept


def _scale(rt: Runtime, folder: Path, width: int) -> str:
    limits = Limits(wall_seconds=_WALL_SECONDS, memory_bytes=rt.settings.get(ImportSettings).memory_bytes)
    try:
        answer = rt.sandbox.run("korrigo_ingest.engine.scaling:scaled", {"width": width}, workdir=folder, limits=limits)
    except EngineError as error:
        raise of_engine(error.reason, error.message, error.detail) from error
    return str(answer["file"])


def clean_spool(rt: Runtime) -> int:
    """Delete spool files older than a day; returns how many. Periodic work of the sweeper."""
    limit = time.time() - KEEP_SECONDS
    removed = 0
    for path in spool(rt).iterdir():
        try:
            if path.is_file() and path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue
    return removed
