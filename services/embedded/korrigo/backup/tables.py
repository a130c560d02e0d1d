"""What backup and restore ask of a database, whichever server it lies on.

One snapshot answers everything about a backup: the dump, the counts, the versions and the list of objects are of
the same moment. Objects are immutable and named by their content, so they may be gathered after it
(reliability.md 10). The queues and the playbook views are not dumped: `migrate` makes them anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo, sql

from korrigo import installation
from korrigo_kit.credentials import migrate_url
from korrigo_kit.errors import Invalid, StateConflict, Unavailable
from korrigo_kit.migrate import connect, current, make_roles
from korrigo_kit.settings import DatabaseSettings

_VARIABLES = {
    "host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD",
    "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT",
}  # fmt: skip
_NOT_UNDERSTOOD = re.compile(rb"SET transaction_timeout = |ALTER TABLE ONLY \S+ ALTER COLUMN \S+ SET \([^;\n]*\);\n")
_TABLES = (
    "SELECT n.nspname || '.' || c.relname, format('%%I.%%I', n.nspname, c.relname) FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname = ANY(%s) ORDER BY 1"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a database; `dump` writes that moment to a file as long as the snapshot is held."""

    at: datetime
    major: int
    schemas: dict[str, str]
    counts: dict[str, int]
    objects: list[str]
    dump: Callable[[Path], None]


@contextmanager
def snapshot(settings: DatabaseSettings, program: Callable[[int, str], str]) -> Iterator[Snapshot]:
    """Hold one moment; `program` gives the path of a PostgreSQL program for a server's major version.

    Raises Unavailable, and StateConflict NOT_MIGRATED when a room has no tables yet.
    """
    url = migrate_url(settings)
    with connect(settings) as connection:
        major = connection.info.server_version // 10000
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            connection.execute("SET LOCAL statement_timeout = 0")
            name, at = _row(connection, "SELECT pg_export_snapshot(), clock_timestamp()")
            schemas = {room: current(connection, room) for room in installation.ROOMS}
            missing = [room for room, version in schemas.items() if version is None]
            if missing:
                raise StateConflict("NOT_MIGRATED", f"there is nothing to back up: {', '.join(missing)} has no tables")

            def dump(path: Path) -> None:
                words = [f"--schema={room}" for room in installation.ROOMS]
                argv = [program(major, "pg_dump"), "-Fc", f"--snapshot={name}", f"--file={path}", *words]
                _run(argv, url, "BACKUP_DUMP_FAILED")

            yield Snapshot(
                at.astimezone(UTC),
                major,
                {room: str(version) for room, version in schemas.items()},
                counts(connection),
                objects(connection),
                dump,
            )


def load(settings: DatabaseSettings, program: Callable[[int, str], str], dump: Path) -> None:
    """Load a dump into an empty database, after the roles that own its tables; raises Invalid BACKUP_LOAD_FAILED."""
    with connect(settings) as connection:
        major = connection.info.server_version // 10000
        for room in installation.ROOMS:
            make_roles(connection, settings, room)
    url = migrate_url(settings)
    restore = [program(major, "pg_restore"), "--exit-on-error", "--no-password", "--file=-"]
    psql = [program(major, "psql"), "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-"]
    for section in ("pre-data", "data", "post-data"):
        _feed([*restore, f"--section={section}", str(dump)], psql, url)


def understood(script: Iterable[bytes]) -> Iterator[bytes]:
    """Leave out of a script of pg_restore, line by line, what only the server or the programs that wrote it understand.

    Before the first rows: `transaction_timeout`, which programs of PostgreSQL 17 and newer set and older servers do not
    know; and the options of columns. No migration sets one: what is found there is a server's own note (PostgreSQL
    15.20 of Debian keeps `pg_attver`), and any other server, the one of the trial too, refuses it.
    """
    lines = iter(script)
    for line in lines:
        if line.startswith(b"COPY "):  # rows follow, which are nobody's to change
            yield line
            break
        if not _NOT_UNDERSTOOD.match(line):
            yield line
    yield from lines


def counts(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Count the rows of every table of every room."""
    tables = connection.execute(_TABLES, (list(installation.ROOMS),)).fetchall()
    return {name: int(_row(connection, f"SELECT count(*) FROM {quoted}")[0]) for name, quoted in tables}


def objects(connection: psycopg.Connection[Any]) -> list[str]:
    """List every blob that any room refers to."""
    parts = " UNION ".join(f"SELECT sha256 FROM {room}.blob_refs" for room in installation.ROOMS)
    return [row[0] for row in connection.execute(f"{parts} ORDER BY 1").fetchall()]


def has_rooms(settings: DatabaseSettings) -> bool:
    """Tell whether this database holds an installation already."""
    with connect(settings) as connection:
        return any(current(connection, room) is not None for room in installation.ROOMS)


# ---------------------------------------------------------------------------------------- names of databases
def beside(settings: DatabaseSettings, suffix: str) -> str:
    """Return the URL of the database whose name has this suffix, on the same server."""
    return at(migrate_url(settings), f"{name_in(settings)}{suffix}")


def at(url: str, database: str) -> str:
    """Return a URL with another database name."""
    import sqlalchemy

    return sqlalchemy.make_url(url).set(database=database).render_as_string(hide_password=False)


def name_in(settings: DatabaseSettings) -> str:
    """Return the name of the configured database."""
    return str(conninfo.conninfo_to_dict(migrate_url(settings))["dbname"])


@contextmanager
def maintenance(settings: DatabaseSettings) -> Iterator[psycopg.Connection[Any]]:
    """Log in beside the configured database, so that it can be renamed."""
    try:
        connection = psycopg.connect(at(migrate_url(settings), "postgres"), autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        raise Unavailable("DATABASE_UNAVAILABLE", "the database `postgres` cannot be reached") from error
    with connection:
        yield connection


def create_empty(connection: psycopg.Connection[Any], name: str) -> None:
    """Create a database, in place of one that an interrupted restore has left."""
    drop(connection, name)
    connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))


def drop(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop a database and whoever is in it."""
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def swap(connection: psycopg.Connection[Any], name: str, new: str, old: str) -> None:
    """Give the name to the new database and `old` to the one that had it, in one transaction."""
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    with connection.transaction():
        connection.execute(rename.format(sql.Identifier(name), sql.Identifier(old)))
        connection.execute(rename.format(sql.Identifier(new), sql.Identifier(name)))


def users_of(connection: psycopg.Connection[Any], name: str) -> list[str]:
    """Name the programs that are logged in to a database."""
    rows = connection.execute(
        "SELECT DISTINCT coalesce(nullif(application_name, ''), usename) FROM pg_stat_activity"
        " WHERE datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY 1",
        (name,),
    ).fetchall()
    return [row[0] for row in rows]


def _row(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...]:
    found = connection.execute(statement.encode()).fetchone()
    assert found is not None
    return tuple(found)


def _run(argv: Sequence[str], url: str, reason: str) -> None:
    done = subprocess.run(argv, env=_environment(url), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise _failed(argv, done.stderr, reason)


def _feed(source: Sequence[str], reader: Sequence[str], url: str) -> None:
    """Let psql do what a script of pg_restore says, as it comes: a database is larger than memory."""
    reason, environment = "BACKUP_LOAD_FAILED", _environment(url)
    with (
        tempfile.TemporaryFile() as complaints,
        tempfile.TemporaryFile() as said,
        subprocess.Popen(source, env=environment, stdout=subprocess.PIPE, stderr=complaints) as written,
        subprocess.Popen(
            reader, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
        ) as read,
    ):
        assert written.stdout is not None and read.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended early, and says why
            read.stdin.writelines(understood(written.stdout))
        with contextlib.suppress(BrokenPipeError):
            read.stdin.close()
        written.stdout.close()
        codes = [(reader, read.wait(), said), (source, written.wait(), complaints)]
        for argv, code, told in codes:
            if code != 0:
                told.seek(0)
                raise _failed(argv, told.read(), reason)


def _environment(url: str) -> dict[str, str]:
    # By environment and not by arguments, which every user of the machine can read.
    given = conninfo.conninfo_to_dict(url)
    names = {_VARIABLES[key]: str(value) for key, value in given.items() if key in _VARIABLES and value}
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "PGCONNECT_TIMEOUT": "5", **names}


def _failed(argv: Sequence[str], complaint: bytes, reason: str) -> Invalid:
    return Invalid(reason, f"{Path(argv[0]).name} failed: {complaint.decode(errors='replace').strip()[-800:]}")
