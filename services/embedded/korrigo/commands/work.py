"""`korrigo work ROOM`: jobs and events of a room until SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from korrigo import installation

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def work(
    room: Annotated[list[str], typer.Argument(help="ingest, grading, render, audit; or all")],
    ready_file: Annotated[Path | None, typer.Option(help="written once the worker takes jobs")] = None,
) -> None:
    """Do the jobs and apply the events of rooms. Example: korrigo work ingest"""
    installation.check_words(room, (*installation.ROOMS, "all"))
    from korrigo import rooms
    from korrigo_kit.work import work as start

    installation.attach()
    start(rooms.rooms(room), rooms.load_settings(), registry="korrigo.rooms", ready_file=ready_file)
