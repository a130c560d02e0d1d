"""`korrigo restore_backup`: the seed playbooks' name of `korrigo backup restore`."""

from __future__ import annotations

from typing import Annotated

import typer

from korrigo.commands import backup

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def restore_backup(
    which: backup.Which,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="restore on trial only")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: backup.AsJson = False,
) -> None:
    """Do the same as `korrigo backup restore`. Example: korrigo restore_backup latest --dry-run"""
    backup.backup()
    backup.run_restore(which, dry_run=dry_run, yes=yes, as_json=as_json)
