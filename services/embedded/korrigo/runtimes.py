"""A room's runtime for the length of one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from korrigo import rooms
from korrigo_kit.room import Process, Runtime
from korrigo_kit.settings import Settings


@contextmanager
def runtime(room: str, settings: Settings | None = None) -> Iterator[Runtime]:
    """Give the runtime of a room and close it at the end; call `installation.attach` first."""
    process = Process.build(rooms.rooms([room]), settings or rooms.load_settings())
    try:
        yield process.runtimes[room]
    finally:
        process.close()
