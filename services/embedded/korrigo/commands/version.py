"""`korrigo version`."""

from __future__ import annotations

import json
from importlib.metadata import version as version_of
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def version(as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """Print the version. Example: korrigo version --json"""
    found = version_of("korrigo")
    typer.echo(json.dumps({"version": found}) if as_json else f"korrigo {found}")
