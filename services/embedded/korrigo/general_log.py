"""logs/django.log, the playbooks' name of the general log: what every process of `korrigo up` logs, in one file.

The processes append to it (korrigo_kit.telemetry.logs.SharedFile); the supervisor alone rotates it. Whatever stands in
it stands in the log of its own process too, so whoever reads all files of the folder leaves this one out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NAME = "django.log"
_BYTES = 10 * 1024 * 1024  # 10 files of 10 MB (domain.md 1.18)
_FILES = 10


def is_copy(path: Path) -> bool:
    """Tell whether a file repeats only what others hold: the general log, or what was rotated away of it."""
    return path.name == NAME or path.name.startswith(f"{NAME}.")


def append(path: Path, line: str) -> None:
    """Write one line at the end, in one piece however many write."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(descriptor, (line + "\n").encode())
        finally:
            os.close(descriptor)


def rotate(path: Path, *, at_bytes: int = _BYTES, files: int = _FILES) -> bool:
    """Give a file that has grown the next number; whoever appends begins a new one. Tells whether it did."""
    with suppress(OSError):
        if path.stat().st_size >= at_bytes:
            for number in range(files - 1, 0, -1):
                newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
                if newer.exists():
                    newer.replace(path.with_name(f"{path.name}.{number}"))
            return True
    return False
