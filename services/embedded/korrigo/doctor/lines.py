"""What the processes of this machine wrote lately. Read by the causes that leave no rows behind.

Only the ends of the files are read: a quarter of an hour of a busy instance is some megabytes.
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
_TAIL_BYTES = 4 << 20


class Lines:
    """The JSON lines of the last quarter of an hour."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [folder for folder in folders if folder.is_dir()]

    @property
    def is_known(self) -> bool:
        """Tell whether there are logs on this machine at all."""
        return bool(self._folders)

    @cached_property
    def recent(self) -> list[dict[str, Any]]:
        """Every line of the window, oldest first, each once."""
        since = datetime.now(UTC) - timedelta(seconds=RECENT_SECONDS)
        found = {raw: line for raw in self._raw(since) if (line := _parsed(raw)) is not None and line["at"] >= since}
        return sorted(found.values(), key=lambda line: line["at"])

    def having(self, *texts: str) -> list[dict[str, Any]]:
        """List the lines whose message or reason holds one of these texts."""
        return self.where(lambda line: any(text in _said(line) for text in texts))

    def where(self, is_wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """List the lines that fit."""
        return [line for line in self.recent if is_wanted(line)]

    def _raw(self, since: datetime) -> Iterator[str]:
        for folder in self._folders:
            for path in sorted(folder.rglob("*.log*")):
                try:
                    if path.suffix != ".gz" and not is_copy(path) and path.stat().st_mtime >= since.timestamp():
                        yield from _tail(path)
                except OSError:  # rotated away while we looked
                    continue


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = text.splitlines()
    return lines if length <= _TAIL_BYTES else lines[1:]


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
