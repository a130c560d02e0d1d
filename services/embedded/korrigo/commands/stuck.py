"""`korrigo stuck`: what the sweeper could not heal, in every room, as the metric counts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from korrigo import installation

if TYPE_CHECKING:
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
    found = [item for item in _found() if stage in (None, item.stage)]
    if as_json:
        copies = sum(item.copies for item in found)
        typer.echo(json.dumps({"copies": copies, "items": [asdict(item) for item in found]}, default=_plain))
    else:
        _print(found)
    if found:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _found() -> Sequence[Stuck]:
    installation.attach()
    from korrigo import rooms
    from korrigo_kit.room import Process
    from korrigo_kit.stuck import oldest_first

    process = Process.build(rooms.rooms(), rooms.load_settings())
    try:
        return oldest_first(item for rt in process.runtimes.values() for item in rt.room.stuck(rt))
    finally:
        process.close()


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
