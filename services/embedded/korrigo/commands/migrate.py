"""`korrigo migrate`: roles, schemas, queues and the first account.

The only command that needs the owner's rights. It does nothing when nothing is due, so it may run at any time.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from korrigo import installation, playbook

if TYPE_CHECKING:
    import psycopg

    from korrigo_kit.migrate import Plan
    from korrigo_kit.settings import Settings

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what is due")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Bring every schema to its newest version. Example: korrigo migrate --dry-run

    With KORRIGO_ADMIN_PASSWORD set, an account `admin` is made when no admin can log in.
    """
    from korrigo import rooms
    from korrigo_kit.telemetry import logs

    installation.attach()
    settings = rooms.load_settings()
    if settings.log.general_path and not dry_run:
        logs.join_general("migrate", settings.log.level, settings.log.general_path)
    saved_as = None if dry_run else save_first(settings)
    moved = due(settings) if dry_run else apply(settings)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "moved": moved, "backup": str(saved_as) if saved_as else None}))
        return
    if saved_as:
        typer.echo(f"backed up as {saved_as}")
    for line in moved:
        typer.echo(line)
    if not moved:
        typer.echo("every schema is at its newest version")


def plans() -> list[Plan]:
    """List every room's migrations without importing a room."""
    from korrigo_kit.migrate import Plan

    found = []
    for room in installation.ROOMS:
        spec = importlib.util.find_spec(f"korrigo_{room}")
        assert spec is not None and spec.submodule_search_locations
        found.append(Plan(room, Path(next(iter(spec.submodule_search_locations))) / "migrations"))
    return found


def due(settings: Settings) -> list[str]:
    """Say which schemas are behind."""
    from korrigo_kit.migrate import connect, current, is_behind

    with connect(settings.database) as connection:
        found = [(plan, current(connection, plan.room)) for plan in plans()]
    return [f"{plan.room} {before or '-'} -> {plan.head}" for plan, before in found if is_behind(before, plan)]


def save_first(settings: Settings) -> Path | None:
    """Back up what a migration will change; None when nothing will change or there is nothing yet.

    Without a home and without KORRIGO_BACKUP__DIRECTORY the database is somebody else's to back up.
    """
    from korrigo.backup import schedule, taking
    from korrigo.home import Home
    from korrigo.settings import BackupSettings
    from korrigo_kit.migrate import connect, current, is_behind

    with connect(settings.database) as connection:
        found = [(plan, current(connection, plan.room)) for plan in plans()]
    if any(version is None for _, version in found) or not any(is_behind(version, plan) for plan, version in found):
        return None
    if settings.home is None and not settings.get(BackupSettings).directory:
        typer.echo("no backup is made: KORRIGO_BACKUP__DIRECTORY is not set", err=True)
        return None
    home = Home.locate()
    directory = taking.directory_of(home, settings)
    say = lambda text: typer.echo(text, err=True)  # noqa: E731
    return taking.take(home, settings, directory, kind=schedule.BEFORE_MIGRATION, say=say).path


def apply(settings: Settings) -> list[str]:
    """Migrate, install the embedded broker's queues when they are used, and make the first admin."""
    from korrigo_kit import broker, pgmq
    from korrigo_kit.migrate import connect
    from korrigo_kit.migrate import migrate as bring_up

    moved = bring_up(settings.database, plans())
    with connect(settings.database) as connection:
        playbook.install(connection, settings.database)
        is_renewed = _note(connection)
    if is_renewed and not moved:
        moved.append("views and rights renewed")
    if broker.is_pgmq(settings):
        with connect(settings.database) as connection:
            if pgmq.install(connection, settings.database):
                moved.append("queues installed")
    if settings.admin_password is not None:
        from korrigo.runtimes import runtime
        from korrigo_grading.flows.accounts import ensure_admin

        with runtime("grading", settings) as grading:
            if ensure_admin(grading, settings.admin_password.get_secret_value()):
                moved.append("account admin made")
    return moved


def _note(connection: psycopg.Connection[Any]) -> bool:
    """Keep which code installed views and rights, so that `korrigo up` sees when that is another; True when it was."""
    from psycopg import sql

    ours = installation.fingerprint()
    row = connection.execute(f"SELECT {installation.FINGERPRINT_SQL}".encode()).fetchone()
    connection.execute(sql.SQL("COMMENT ON SCHEMA playbook IS {}").format(sql.Literal(ours)))
    return row is None or row[0] != ours
