"""Folders for one piece of work each, named by the process that made them, so that one can tell what a killed one left.

Whoever works on files makes them; a worker removes the leftovers at its start, and `korrigo cleanup_temp_files` by age.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from korrigo_kit.telemetry import samples

_NAME = re.compile(r"korrigo-(?:ingest|grading|render|audit|scale)-(\d+-\d+)-[a-z0-9_]{8}")


def scratch_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Make a folder for one piece of work, removed at its end; `prefix` is a room's name or `scale`."""
    return tempfile.TemporaryDirectory(prefix=f"korrigo-{prefix}-{samples.identity()}-", ignore_cleanup_errors=True)


def remove_leftovers() -> list[str]:
    """Remove the folders whose process is gone and return their names; those of other users are left."""
    removed = []
    for path in Path(tempfile.gettempdir()).iterdir():
        named = _NAME.fullmatch(path.name)
        if named and not samples.is_alive(named[1]) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                removed.append(path.name)
    return removed
