"""Temporary files that nobody will need again: leftovers of crashes. Started by `korrigo cleanup_temp_files`.

Whatever works has touched its files within the last day, because a job ends after minutes and an upload after hours.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from korrigo_ingest import events
from korrigo_ingest.settings import UploadSettings
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.room import Runtime

OLD_SECONDS = 24 * 3600
# Folders of `kit.scratch` and of the sandbox; nothing else in the temporary folder is ours to judge.
_SCRATCH = re.compile(r"korrigo-(ingest|grading|render|audit|scale|sandbox)-(\d+-\d+-)?[a-z0-9_]{8}")
# Uploads being received and scaled pictures (kit.rest.upload, flows.scaling).
_SPOOLED = re.compile(r"(upload|picture)-.+")


@dataclass
class Cleared:
    """What was found, and how many bytes it holds."""

    paths: list[str] = field(default_factory=list)
    bytes: int = 0


def clear(
    rt: Runtime, *, is_dry_run: bool, older_than_seconds: float = OLD_SECONDS, actor_id: str = SYSTEM_ACTOR
) -> Cleared:
    """Remove leftovers that nobody has touched for a day; those of other users are left."""
    limit = time.time() - older_than_seconds
    cleared = Cleared()
    for path in _candidates(rt):
        try:
            newest, size = _extent(path)
        except FileNotFoundError:  # somebody was faster
            continue
        if newest >= limit:
            continue
        cleared.paths.append(str(path))
        cleared.bytes += size
    if cleared.paths and not is_dry_run:
        with rt.db.transaction(actor=actor_id) as tx:
            events.acted(tx, "TEMP_CLEARED", actor_id, {"count": len(cleared.paths), "bytes": cleared.bytes})
        for name in cleared.paths:
            _remove(Path(name))
    return cleared


def _candidates(rt: Runtime) -> Iterator[Path]:
    temporary = Path(tempfile.gettempdir())
    yield from (path for path in _mine(temporary) if _SCRATCH.fullmatch(path.name) and path.is_dir())
    configured = rt.settings.get(UploadSettings).spool
    spool = Path(configured) if configured else temporary / f"korrigo-spool-{os.getuid()}"
    if spool.is_dir():
        yield from (path for path in _mine(spool) if _SPOOLED.fullmatch(path.name) and path.is_file())


def _mine(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        try:
            if path.lstat().st_uid == os.getuid() and not path.is_symlink():
                yield path
        except FileNotFoundError:
            continue


def _extent(path: Path) -> tuple[float, int]:
    found = [path.lstat(), *(below.lstat() for below in path.rglob("*"))]
    return max(one.st_mtime for one in found), sum(one.st_size for one in found)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
