"""Migrations: roles and schemas first, then each room's own steps under its owner's role.

The only writer of schema. Called by `korrigo migrate` (and by `korrigo up` before the rooms start). Revision ids
are the four digits that a file begins with, so that the head of a room is known without importing alembic.

Steps only add (reliability.md 10): a release runs on the schema of the one after it, so going back a release is
going back to its code. A schema that is ahead of the code is therefore left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from korrigo_kit.credentials import migrate_url, role_password
from korrigo_kit.errors import Unavailable
from korrigo_kit.settings import DatabaseSettings

log = logging.getLogger("korrigo.migrate")

# One number for all: migrations of two releases must never run at once.
ADVISORY_LOCK = 0x6B6F7272


@dataclass(frozen=True)
class Plan:
    """One room's migrations: its name and the folder that holds `NNNN_slug.py`."""

    room: str
    folder: Path

    @property
    def head(self) -> str:
        """Newest revision id."""
        return max(path.name[:4] for path in self.folder.glob("[0-9][0-9][0-9][0-9]_*.py"))


def connect(settings: DatabaseSettings) -> psycopg.Connection[Any]:
    """Log in as the role that may create roles and schemas; raises Unavailable."""
    try:
        return psycopg.connect(
            migrate_url(settings), autocommit=True, connect_timeout=settings.connect_timeout_seconds
        )
    except psycopg.OperationalError as error:
        raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached") from error


def current(connection: psycopg.Connection[Any], room: str) -> str | None:
    """Tell the revision a room's schema is at, None when there is no schema."""
    found = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{room}.alembic_version",)).fetchone()
    if found is None or not found[0]:
        return None
    row = connection.execute(sql.SQL("SELECT version_num FROM {}.alembic_version").format(sql.Identifier(room)))
    version = row.fetchone()
    return str(version[0]) if version else None


def is_behind(found: str | None, plan: Plan) -> bool:
    """Tell whether a room at this revision has steps to take; one that a later release has moved has none."""
    return found is None or found < plan.head


def migrate(settings: DatabaseSettings, plans: Sequence[Plan]) -> list[str]:
    """Bring every room to its head; returns `room old -> new` for each that moved."""
    moved = []
    with connect(settings) as connection:
        connection.execute("SET lock_timeout = '60s'")
        connection.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        for plan in plans:
            make_roles(connection, settings, plan.room)
            _make_schema(connection, plan.room)
            before = current(connection, plan.room)
            if is_behind(before, plan):
                _upgrade(settings, plan)
                moved.append(f"{plan.room} {before or '-'} -> {plan.head}")
            _grant(connection, plan.room)
    return moved


def _role_exists(connection: psycopg.Connection[Any], role: str) -> bool:
    return connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is not None


def make_roles(connection: psycopg.Connection[Any], settings: DatabaseSettings, room: str) -> None:
    """Create a room's two roles, or renew the password of the second; a restore needs them before the tables."""
    owner, role = f"korrigo_{room}_owner", f"korrigo_{room}"
    if not _role_exists(connection, owner):
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(owner)))
        # PostgreSQL 16 and later no longer make a creator a full member of what he creates.
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(owner)))
    if getattr(settings, f"{room}_url", None) is None:
        verb = "ALTER" if _role_exists(connection, role) else "CREATE"
        connection.execute(
            sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                sql.SQL(verb), sql.Identifier(role), sql.Literal(role_password(settings, role))
            )
        )


def _make_schema(connection: psycopg.Connection[Any], room: str) -> None:
    owner = f"korrigo_{room}_owner"
    connection.execute(
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(sql.Identifier(room), sql.Identifier(owner))
    )


def _grant(connection: psycopg.Connection[Any], room: str) -> None:
    schema, role = sql.Identifier(room), sql.Identifier(f"korrigo_{room}")
    for statement in (
        "GRANT USAGE ON SCHEMA {} TO {}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}",
        "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {} TO {}",
    ):
        connection.execute(sql.SQL(statement).format(schema, role))
    _grant_statistics(connection, f"korrigo_{room}")
    # Tables that a room declares append-only by a comment keep INSERT and SELECT only.
    rows = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind = 'r' AND obj_description(c.oid, 'pg_class') = 'append-only'",
        (room,),
    ).fetchall()
    for (table,) in rows:
        connection.execute(
            sql.SQL("REVOKE UPDATE, DELETE, TRUNCATE ON {}.{} FROM {}").format(schema, sql.Identifier(table), role)
        )


def _grant_statistics(connection: psycopg.Connection[Any], role: str) -> None:
    """Let a role see the state of other roles' sessions (counts in its metrics); statements carry no values."""
    try:
        with connection.transaction():
            connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(role)))
    except psycopg.errors.InsufficientPrivilege:
        log.warning("role %s sees its own sessions only: grant it pg_read_all_stats", role)


def _upgrade(settings: DatabaseSettings, plan: Plan) -> None:
    import sqlalchemy
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("version_locations", str(plan.folder))
    config.set_main_option("path_separator", "os")
    url = sqlalchemy.make_url(migrate_url(settings)).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"SET ROLE korrigo_{plan.room}_owner"))
        connection.execute(sqlalchemy.text(f"SET search_path = {plan.room}"))
        connection.execute(sqlalchemy.text("SET lock_timeout = '5s'"))
        connection.commit()
        config.attributes.update(connection=connection, schema=plan.room)
        command.upgrade(config, "head")
        connection.commit()
    engine.dispose()
    log.info("schema of %s is at %s", plan.room, plan.head)
