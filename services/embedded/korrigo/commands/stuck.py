"""`korrigo stuck`: what the sweeper could not heal, in every room, as the metric counts it.

Every room is asked over gRPC, so it is right wherever the rooms run. A room that does not answer is looked at in the
database, where this machine may.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from korrigo import installation
from korrigo_kit.errors import KorrigoError, Unavailable

if TYPE_CHECKING:
    from korrigo_kit.room import Process
    from korrigo_kit.stuck import Stuck

app = typer.Typer(add_completion=False, rich_markup_mode=None)
EXIT_FOUND_PROBLEMS = 9


@app.command()
def stuck(
    stage: Annotated[str | None, typer.Option(help="only import, finalize or lock")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """List what is stuck, oldest first; exit code 9 when something is. Example: korrigo stuck"""
    from korrigo_kit.stuck import STAGES

    installation.check_words([stage] if stage else [], STAGES)
    listed, silent = _found()
    found = [item for item in listed if stage in (None, item.stage)]
    if as_json:
        copies = sum(item.copies for item in found)
        answer = {"copies": copies, "items": [asdict(item) for item in found], "unreachable": silent}
        typer.echo(json.dumps(answer, default=_plain))
    else:
        _print(found)
    if silent:
        raise Unavailable("ROOM_SILENT", f"could not look into {', '.join(silent)}")
    if found:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _found() -> tuple[Sequence[Stuck], list[str]]:
    """List what is stuck, and the rooms that could not be looked into."""
    installation.attach()
    from korrigo import rooms
    from korrigo_kit import operations
    from korrigo_kit.room import Process
    from korrigo_kit.stuck import oldest_first

    process = Process.build(rooms.rooms(), rooms.load_settings())
    channels = process.runtimes["grading"].channels
    found: list[Stuck] = []
    silent = []
    try:
        for room in rooms.NAMES:
            try:
                found += operations.list_stuck(channels, room)
            except KorrigoError:
                silent += _look(process, room, found)
        return oldest_first(found), silent
    finally:
        process.close()


def _look(process: Process, room: str, found: list[Stuck]) -> list[str]:
    """Look into the tables of a room that does not answer; its name when that cannot be done either."""
    from korrigo_kit.settings import SettingsError

    try:
        runtime = process.runtimes[room]
        found += runtime.room.stuck(runtime)
    except (KorrigoError, SettingsError):
        return [room]
    return []


def _plain(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat(timespec="milliseconds")


def _print(found: Sequence[Stuck]) -> None:
    if not found:
        typer.echo("nothing is stuck")
        return
    now = datetime.now(UTC)
    typer.echo(f"{'STAGE':9} {'REASON':18} {'COPIES':>6} {'SINCE':>9} {'ATTEMPTS':>8}  WHAT")
    for item in found:
        since = f"{(now - item.since).total_seconds():.0f} s"
        what = f"{item.subject_type} {item.subject_id}" + (f" ({item.error_reason})" if item.error_reason else "")
        typer.echo(f"{item.stage:9} {item.reason:18} {item.copies:>6} {since:>9} {item.attempts:>8}  {what}")
