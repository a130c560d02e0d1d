"""`korrigo drill`: every known cause on a scratch instance, to see that it is noticed, named and healed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from korrigo.operating import EXIT_FOUND_PROBLEMS

if TYPE_CHECKING:
    from korrigo.drills.engine import Result

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def drill(
    name: Annotated[list[str] | None, typer.Argument(help="drills to run; default: all")] = None,
    listed: Annotated[bool, typer.Option("--list", help="only list the drills, with what is expected of each")] = False,
    keep: Annotated[Path | None, typer.Option(help="folder to use and to keep, with every log")] = None,
    hold: Annotated[float, typer.Option(help="seconds that outages last at least", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on the last line")] = False,
) -> None:
    """Drill on a scratch instance with a real Prometheus and Alertmanager; no running instance is touched.

    Exit code 9 when a drill failed. Example: korrigo drill corrupted-pdf token-mismatch
    """
    from korrigo.drills import catalogue, table

    kinds = catalogue.chosen(name or [])
    if listed:
        typer.echo(json.dumps(table.declared(kinds)) if as_json else "\n".join(table.declarations(kinds)))
        return
    results, healthy_problems = _run(kinds, keep, hold, as_json)
    if as_json:
        typer.echo(json.dumps(table.told(results, healthy_problems)))
    else:
        typer.echo("\n".join(table.lines(results, healthy_problems)))
    if healthy_problems or any(result.problems for result in results):
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _run(kinds: Sequence[type], keep: Path | None, hold: float, as_json: bool) -> tuple[list[Result], list[str]]:
    from korrigo.drills.run import run

    return run(kinds, keep=keep, hold_seconds=hold, say=lambda text: typer.echo(text, err=as_json))
