"""`korrigo config show`: every setting, its value and where that came from."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from korrigo import installation
from korrigo.home import Home

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def config() -> None:
    """Show the settings. Example: korrigo config show"""


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """Print every setting with its value and origin; secrets are masked. Example: korrigo config show --json"""
    from korrigo import rooms

    home = Home.locate()
    if installation.is_embedded(os.environ) and installation.database_url_file(home).exists():
        installation.attach()
    rows = rooms.load_settings().show()
    if as_json:
        typer.echo(json.dumps({name: {"value": value, "origin": origin} for name, value, origin in rows}, indent=1))
        return
    width = max(len(name) for name, _, _ in rows)
    typer.echo(f"{'KORRIGO_HOME':{width}}  {home.root}")
    for name, value, origin in rows:
        typer.echo(f"{name:{width}}  {value or '-'}" + ("" if origin == "default" else f"  ({origin})"))
