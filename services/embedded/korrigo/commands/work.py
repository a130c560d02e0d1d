"""`korrigo work ROOM`: jobs and events of a room until SIGTERM."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from korrigo import installation

if TYPE_CHECKING:
    from korrigo_kit.settings import Settings

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def work(
    room: Annotated[list[str], typer.Argument(help="ingest, grading, render, audit; or all")],
    ready_file: Annotated[Path | None, typer.Option(help="written once the worker takes jobs")] = None,
) -> None:
    """Do the jobs and apply the events of rooms. Example: korrigo work ingest"""
    installation.check_words(room, (*installation.ROOMS, "all"))
    from korrigo import rooms

    installation.attach()
    settings = rooms.load_settings()
    with _shared_samples(settings):
        from korrigo_kit.scratch import remove_leftovers
        from korrigo_kit.work import work as start

        # of workers that were killed: a pod's temporary volume outlives its container
        remove_leftovers()
        start(rooms.rooms(room), settings, registry="korrigo.rooms", ready_file=ready_file)


@contextmanager
def _shared_samples(settings: Settings) -> Iterator[None]:
    """Let the pool's children hand what they count to this process, when it serves /metrics itself.

    Before any room is imported: a metric keeps the kind of numbers that it was made with.
    """
    from korrigo_kit.telemetry import samples

    if not settings.http.metrics_port or samples.folder() is not None:
        yield
        return
    folder = samples.share_below(Path(tempfile.gettempdir()))
    try:
        yield
    finally:
        samples.remove(folder)
