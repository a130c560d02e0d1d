"""`korrigo logs grep ID`: what every process wrote about one request, copy, scan or job, in order."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from korrigo.general_log import is_copy
from korrigo.home import Home
from korrigo.operating import AsJson, moment
from korrigo_kit.errors import NotFound

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
_LOG_FILE = re.compile(r".+\.(log|out)(\.\d+)?(\.gz)?")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# Told at the head of the line, or of no use to a reader at 03:00.
_UNSHOWN = {"timestamp", "level", "logger", "service", "message", "module", "function", "line", "exc_info"}


@app.callback()
def logs() -> None:
    """Search the logs of this home. Example: korrigo logs grep 0197…"""


@app.command()
def grep(
    id: Annotated[str, typer.Argument(help="request id, copy id, scan id, job id, or any text")],
    since: Annotated[str | None, typer.Option(help="24h, 7d or an ISO time")] = None,
    level: Annotated[str | None, typer.Option(help="this level and above: DEBUG ... CRITICAL")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the lines of all processes that name it, rotated files included, in the order of time.

    Exit code 3 when there is none. Example: korrigo logs grep 0197… --level WARNING
    """
    from korrigo import installation

    wanted = (level or "DEBUG").upper()
    installation.check_words([wanted], LEVELS)
    start = moment(since) if since else datetime.min.replace(tzinfo=UTC)
    home = Home.locate()
    found = sorted(
        (line for line in search(home.logs, id) if _passes(line, LEVELS[LEVELS.index(wanted) :], start)),
        key=lambda line: line["timestamp"],
    )
    if not found:
        raise NotFound("NO_LOG_LINE", f"no line in {home.logs} names {id}")
    if as_json:
        typer.echo(json.dumps({"items": found}))
        return
    for line in found:
        typer.echo(pretty(line, id))


def search(folder: Path, text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of a folder's log files that hold a text, each once; the general log repeats others."""
    seen: set[str] = set()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if is_copy(path) or path.is_symlink() or not path.is_file() or not _LOG_FILE.fullmatch(path.name):
            continue
        for raw in _lines(path):
            if text in raw and raw not in seen:
                seen.add(raw)
                line = _parsed(raw)
                if line is not None:
                    yield line


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", errors="replace") if path.suffix == ".gz" else path.open(errors="replace") as file:
            yield from (line.rstrip("\n") for line in file)
    except FileNotFoundError:  # rotated away while we looked
        return


def _parsed(raw: str) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
        datetime.fromisoformat(line["timestamp"])
    except (ValueError, TypeError, KeyError):
        return None
    return line if isinstance(line, dict) else None


def _passes(line: dict[str, Any], levels: tuple[str, ...], since: datetime) -> bool:
    return line.get("level") in levels and datetime.fromisoformat(line["timestamp"]) >= since


def pretty(line: dict[str, Any], id: str) -> str:
    """Write a line for a person: time, level, service, message, the other fields, then the stack trace."""
    shown = {key: value for key, value in line.items() if key not in _UNSHOWN and value not in (id, "", None)}
    fields = " ".join(f"{key}={value}" for key, value in shown.items())
    head = f"{line['timestamp']}  {line.get('level', ''):8} {line.get('service', ''):8} {line.get('message', '')}"
    trace = "".join(f"\n    {row}" for row in str(line.get("exc_info", "")).splitlines())
    return head + (f"  [{fields}]" if fields else "") + trace
