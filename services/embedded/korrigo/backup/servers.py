"""The PostgreSQL server behind a backup or a restore.

`instance`: the one that serves this home (the running one, or one that is started for as long as it takes), or the
one that KORRIGO_DATABASE__URL names. `scratch`: an empty one in a temporary folder, for trials.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from korrigo import installation, postgres, rooms
from korrigo.children import Child, Running
from korrigo.home import Home, is_in_use
from korrigo_kit.errors import NotFound, Unavailable
from korrigo_kit.settings import DatabaseSettings, Settings

_START_SECONDS = 600.0
SCRATCH = "scratch-"
# What is lost at a loss of power was to be thrown away.
_CARELESS = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "autovacuum=off")


@contextmanager
def instance(home: Home) -> Iterator[Settings]:
    """Give the settings of the instance with its database answering; raises NotFound NOT_SET_UP."""
    if not installation.is_embedded(os.environ) or is_in_use(home):
        installation.attach()
        yield rooms.load_settings()
    elif not has_data(home):
        raise NotFound("NOT_SET_UP", f"no KORRIGO_DATABASE__URL, and no instance in {home.root}")
    else:
        lock = home.lock()
        try:
            with owned(home) as settings:
                yield settings
        finally:
            lock.release()


@contextmanager
def owned(home: Home) -> Iterator[Settings]:
    """Run the home's own server, made if need be, for one command; the caller holds the home's lock."""
    installation.make_secrets(home)
    server = postgres.prepare(home)
    installation.note_database(home, server.url)
    os.environ.update(installation.derive(home, os.environ))
    with _running(server.child(), home.logs / "postgres.log"):
        yield rooms.load_settings()


@contextmanager
def scratch(home: Home, settings: Settings, major: int) -> Iterator[Settings]:
    """Run an empty server of this major version in a folder that is removed at the end.

    The folder lies in the home when there is one: /tmp may be memory.
    """
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=home.root if has_data(home) else None))
    server: postgres.Server | None = None
    try:
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        own = Home(folder)
        own.prepare()
        environ = dict(os.environ) | {postgres.BINARIES_VARIABLE: str(_binaries(home, major).folder)}
        server = postgres.prepare(own, environ)
        child = server.child()
        careless = replace(child, argv=(*child.argv, *_CARELESS), stop_signal=child.hurry_signal)
        with _running(careless, own.logs / "postgres.log"):
            yield pointed(settings, server.url)
    finally:
        if server is not None:
            shutil.rmtree(server.socket, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def drop_leftovers(home: Home) -> None:
    """Remove scratch folders of commands that were killed; call while holding the lock of the backups."""
    for folder in home.root.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)


def pointed(settings: Settings, url: str) -> Settings:
    """Return the settings with another database, for every room."""
    own = {"url": SecretStr(url), "migrate_url": None, **{f"{room}_url": None for room in installation.ROOMS}}
    database = settings.database.model_copy(update=own)
    assert isinstance(database, DatabaseSettings)
    sections = {**settings.sections, DatabaseSettings.section: database}
    return Settings(sections=sections, origins=settings.origins, home=settings.home, admin_password=None)


def programs(home: Home) -> Callable[[int, str], str]:
    """Return the function that finds a PostgreSQL program for a server's major version."""
    return lambda major, name: _binaries(home, major, name).program(name)


def has_data(home: Home) -> bool:
    """Tell whether the home has a database of its own."""
    return (home.postgres / "data" / "PG_VERSION").exists()


def _binaries(home: Home, major: int, program: str = "pg_restore") -> postgres.Binaries:
    # A copy in the home is what the database's user can run (korrigo.postgres); the same version comes first.
    found = [*_copies(home), *postgres.every_binaries(os.environ)]
    usable = [binaries for binaries in found if (binaries.folder / program).exists() and binaries.major >= major]
    if not usable:
        raise Unavailable(
            "POSTGRES_PROGRAMS_MISSING",
            f"no {program} of PostgreSQL {major} or newer: install its client and server packages, or name their"
            f" folder in {postgres.BINARIES_VARIABLE}",
        )
    return min(usable, key=lambda binaries: binaries.major)


def _copies(home: Home) -> Iterator[postgres.Binaries]:
    for folder in home.root.glob("postgres-*-binaries"):
        for program in folder.rglob("bin/pg_restore"):
            yield postgres.Binaries(program.parent, int(folder.name.split("-")[1]))


@contextmanager
def _running(child: Child, log: Path) -> Iterator[None]:
    running = Running(child, log)
    child.before_start()
    running.spawn()
    assert running.process is not None
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not child.is_ready():
            if running.process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("POSTGRES_NOT_STARTED", f"the database does not start:\n{running.tail()}")
            time.sleep(0.05)
        yield
    finally:
        running.ask_to_stop(in_a_hurry=False)
        try:
            running.process.wait(child.stop_seconds)
        finally:
            running.kill()
            running.forget()
