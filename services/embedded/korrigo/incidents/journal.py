"""Which commands were given on this machine: a line each, for the timeline of an incident. Written by `korrigo.cli`.

$KORRIGO_HOME/incidents/commands.jsonl. Of the words only those are kept that name an act or an id: what else a person
typed may be a name or a reason. A command whose line cannot be written is done all the same.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from korrigo.home import Home

MOST_BYTES = 1 << 20
# Set for commands that a command gives, which no person did.
UNNOTED_VARIABLE = "UNNOTED_KORRIGO_COMMAND"
# Resident, or of no use to whoever reads what was done.
_UNNOTED = {"up", "run", "work", "version", "incident", "demo", "drill"}
# Their second word names an act.
_GROUPS = {"audit", "backup", "config", "export", "logs", "queue", "read-only", "secrets", "sessions", "user"}
_FREE = {"doctor", "intervene"}
_NAMED = re.compile(r"--[a-z-]+|((copy|exam|scan)/)?[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|all")
_WORD = re.compile(r"[A-Za-z_-]{2,40}")


@dataclass(frozen=True, slots=True)
class Command:
    """A command that was given: when it began, its words, its exit code and how long it took."""

    at: datetime
    words: str
    code: int
    seconds: float


@contextmanager
def noted(words: Sequence[str]) -> Iterator[None]:
    """Write down the command that is run inside, with its exit code."""
    is_void = not words or words[0] in _UNNOTED or words[0].startswith("-") or "--help" in words
    if is_void or UNNOTED_VARIABLE in os.environ:
        yield
        return
    at, start, code = datetime.now(UTC), time.monotonic(), 0
    try:
        yield
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    except BaseException:
        code = 1
        raise
    finally:
        _append(Home.locate(), Command(at, spoken(words), code, time.monotonic() - start))


def spoken(words: Sequence[str]) -> str:
    """Return the words that name an act or an id, the others as an ellipsis."""
    head = words[0].replace("_", "-")
    kept = [words[0][:40]]
    for place, word in enumerate(words[1:], 1):
        is_named = head in _FREE or (place == 1 and head in _GROUPS)
        if _NAMED.fullmatch(word.partition("=")[0]) or (is_named and _WORD.fullmatch(word)):
            kept.append(word.partition("=")[0])
        elif kept[-1] != "…":
            kept.append("…")
    return " ".join(kept)


def _append(home: Home, command: Command) -> None:
    path = journal_file(home)
    line = {
        "at": command.at.isoformat(timespec="milliseconds"),
        "command": command.words,
        "exit_code": command.code,
        "seconds": round(command.seconds, 2),
    }
    with suppress(OSError):
        if not path.parent.is_dir():  # no home, or none with an incident yet
            return
        if path.exists() and path.stat().st_size > MOST_BYTES:
            path.replace(path.with_suffix(".jsonl.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def journal_file(home: Home) -> Path:
    """Return the file of the commands."""
    return home.root / "incidents" / "commands.jsonl"


def between(home: Home, start: datetime, end: datetime) -> list[Command]:
    """List the commands that began in a time, in order."""
    found = []
    path = journal_file(home)
    for file in (path.with_suffix(".jsonl.1"), path):
        with suppress(OSError):
            found += [command for line in file.read_text().splitlines() if (command := _read(line)) is not None]
    return [command for command in found if start <= command.at <= end]


def _read(line: str) -> Command | None:
    try:
        found = json.loads(line)
        return Command(
            datetime.fromisoformat(found["at"]), str(found["command"]), int(found["exit_code"]), float(found["seconds"])
        )
    except (ValueError, KeyError, TypeError):
        return None
