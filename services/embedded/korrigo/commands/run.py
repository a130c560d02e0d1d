"""`korrigo run ROOM`: serve a room until SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from korrigo import installation

app = typer.Typer(add_completion=False, rich_markup_mode=None)
PARTS = ("api", "relay", "sweeper")


@app.command()
def run(
    room: Annotated[list[str], typer.Argument(help="ingest, grading, render, audit; or all")],
    part: Annotated[list[str] | None, typer.Option(help="only api, relay or sweeper (repeatable)")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="written once everything answers")] = None,
) -> None:
    """Serve rooms: HTTP, gRPC, outbox relay, sweeper. Example: korrigo run grading"""
    installation.check_words(room, (*installation.ROOMS, "all"))
    installation.check_words(part or [], PARTS)
    from korrigo import rooms
    from korrigo.reference import merged_openapi
    from korrigo_kit import serve

    installation.attach()
    # Late: it counts what it does, and importing a metric settles where its process counts.
    from korrigo import healing

    # Where grading serves alone it answers for the whole surface; together the rooms describe themselves.
    document = merged_openapi() if room == ["grading"] else None
    settings = rooms.load_settings()
    serve.run(
        rooms.rooms(room),
        settings,
        parts=part or PARTS,
        ready_file=ready_file,
        openapi_document=document,
        beside_sweeper=healing.beside(room, settings),
    )
