"""What the processes of this machine wrote lately. Read by the causes that leave no rows behind.

Only the ends of the files are read: a quarter of an hour of a busy instance is some megabytes. Of the last hour only
the errors are taken, which are few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from korrigo.general_log import is_copy

RECENT_SECONDS = 900
HOUR_SECONDS = 3600
_TAIL_BYTES = 4 << 20
_HOUR_TAIL_BYTES = 16 << 20
_ERROR_LEVELS = ("ERROR", "CRITICAL")


class Lines:
    """The JSON lines of the last quarter of an hour, and the errors of the last hour."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [folder for folder in folders if folder.is_dir()]

    @property
    def is_known(self) -> bool:
        """Tell whether there are logs on this machine at all."""
        return bool(self._folders)

    @cached_property
    def recent(self) -> list[dict[str, Any]]:
        """Every line of the window, oldest first, each once."""
        return self._since(RECENT_SECONDS, _TAIL_BYTES, lambda raw: True)

    @cached_property
    def errors(self) -> list[dict[str, Any]]:
        """Every line of the last hour that is an error or worse, oldest first, each once."""
        # Most lines are none: they are passed over before they are read as JSON.
        lines = self._since(HOUR_SECONDS, _HOUR_TAIL_BYTES, lambda raw: any(f'"{one}"' in raw for one in _ERROR_LEVELS))
        return [line for line in lines if line.get("level") in _ERROR_LEVELS]

    def _since(self, seconds: int, tail_bytes: int, is_wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        since = datetime.now(UTC) - timedelta(seconds=seconds)
        found = {
            raw: line
            for raw in self._raw(since, tail_bytes)
            if is_wanted(raw) and (line := _parsed(raw)) is not None and line["at"] >= since
        }
        return sorted(found.values(), key=lambda line: line["at"])

    def having(self, *texts: str) -> list[dict[str, Any]]:
        """List the lines whose message or reason holds one of these texts."""
        return self.where(lambda line: any(text in _said(line) for text in texts))

    def where(self, is_wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """List the lines that fit."""
        return [line for line in self.recent if is_wanted(line)]

    def _raw(self, since: datetime, tail_bytes: int) -> Iterator[str]:
        for folder in self._folders:
            for path in sorted(folder.rglob("*.log*")):
                try:
                    if path.suffix != ".gz" and not is_copy(path) and path.stat().st_mtime >= since.timestamp():
                        yield from _tail(path, tail_bytes)
                except OSError:  # rotated away while we looked
                    continue


def _tail(path: Path, tail_bytes: int) -> list[str]:
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - tail_bytes))
        text = file.read().decode(errors="replace")
    lines = text.splitlines()
    return lines if length <= tail_bytes else lines[1:]


def _parsed(raw: str) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
        line["at"] = datetime.fromisoformat(line["timestamp"])
    except (ValueError, TypeError, KeyError):
        return None
    return line if line["at"].tzinfo else None


def _said(line: dict[str, Any]) -> str:
    return f"{line.get('message', '')} {line.get('reason', '')} {line.get('exc_info', '')}"


def quote(line: dict[str, Any]) -> str:
    """Write a line as evidence: when, who, what."""
    return f"{line['at']:%H:%M:%S} {line.get('service', '')}: {line.get('message', '')}"[:240]
