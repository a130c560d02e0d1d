"""`korrigo backup create|verify|list|restore|record|settle`: what there is to come back to.

Every backup is restored on trial before it counts; a restore first backs up what it replaces.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from korrigo import installation
from korrigo.backup import schedule
from korrigo.home import Home
from korrigo_kit.errors import Invalid

if TYPE_CHECKING:
    from korrigo.backup.archive import Manifest

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]
Kind = Annotated[str, typer.Option(help="manual, or nightly: one of those of which the newest stay")]
Which = Annotated[str, typer.Argument(help="a folder, a name of `backup list`, or latest")]


@app.callback()
def backup() -> None:
    """Make, verify, list and restore backups. Example: korrigo backup create"""
    # Ended by the supervisor or by hand: leave by way of every `finally`.
    signal.signal(signal.SIGTERM, _leave)


@app.command()
def create(
    to: Annotated[Path | None, typer.Option(help="folder of backups instead of the configured one")] = None,
    kind: Kind = schedule.MANUAL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what it would hold")] = False,
    as_json: AsJson = False,
) -> None:
    """Back up database and objects, and prove it by a trial restore. Example: korrigo backup create --to /mnt/usb"""
    from korrigo.backup import servers, taking

    installation.check_words([kind], (schedule.MANUAL, schedule.NIGHTLY))
    home = Home.locate()
    with servers.instance(home) as settings:
        directory = to.absolute() if to else taking.directory_of(home, settings)
        if dry_run:
            found = taking.foresee(home, settings, directory, kind=kind)
            _tell(
                as_json,
                {"dry_run": True, **asdict(found)},
                f"would back up {found.copies} copies and {found.objects} objects of {', '.join(found.schemas)} to"
                f" {directory}, {found.free_bytes / 1e6:.1f} MB free"
                + (f"; would remove {', '.join(found.would_remove)}" if found.would_remove else ""),
            )
            return
        taken = taking.take(home, settings, directory, kind=kind, say=_progress(as_json))
    fields = _fields(taken.path, taken.manifest) | {"seconds": taken.seconds, "removed": list(taken.removed)}
    size = taken.manifest.dump_bytes + taken.manifest.object_bytes
    _tell(as_json, fields, f"{taken.path}  {taken.manifest.copies} copies, {size / 1e6:.1f} MB, {taken.seconds} s")


@app.command()
def verify(which: Which, as_json: AsJson = False) -> None:
    """Read every byte of a backup and restore it on trial. Example: korrigo backup verify latest"""
    from korrigo import rooms
    from korrigo.backup import archive, restoring, taking

    home = Home.locate()
    settings = rooms.load_settings()
    path = archive.find(taking.directory_of(home, settings), which)
    manifest = restoring.rehearse(home, settings, path)
    _tell(as_json, _fields(path, manifest) | {"is_good": True}, f"good: {path}, {manifest.copies} copies")


@app.command("list")
def list_backups(as_json: AsJson = False) -> None:
    """List the good backups, oldest first. Example: korrigo backup list"""
    from korrigo.backup import archive, taking

    directory = taking.directory_of(Home.locate(), None)
    items = []
    for name in schedule.names(directory):
        try:
            items.append(_fields(directory / name, archive.read_manifest(directory / name)))
        except Invalid as error:
            items.append({"path": str(directory / name), "name": name, "error": error.message})
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), "items": items}))
        return
    for item in items:
        size = (item.get("dump_bytes", 0) + item.get("object_bytes", 0)) / 1e6
        typer.echo(f"{item['name']:40}  " + (item.get("error") or f"{item['copies']:6} copies  {size:9.1f} MB"))
    if not items:
        typer.echo(f"no backup in {directory}")


@app.command()
def restore(
    which: Which,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="restore on trial only")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of the present state, which is backed up first. Example: korrigo backup restore latest

    The product must be stopped. Every session and lock ends; an interrupted restore leaves the present state.
    """
    run_restore(which, dry_run=dry_run, yes=yes, as_json=as_json)


@app.command()
def record(
    name: Annotated[str, typer.Argument(help="what the other tool calls it")],
    at: Annotated[str, typer.Option(help="the moment of its database, an ISO time or a span ago")] = "0s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be recorded")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell the product that another tool made a good backup. Example: korrigo backup record base-0301

    Call it from that tool once it has checked its backup; BackupTooOld and doctor look at nothing else.
    """
    from korrigo.backup import servers, taking
    from korrigo.operating import moment
    from korrigo_kit.clock import rfc3339

    taken_at = rfc3339(moment(at))
    with servers.instance(Home.locate()) as settings:
        if not dry_run:
            taking.note(settings, name, taken_at, {"made_by": "another tool"})
    fields = {"name": name, "at": taken_at, "dry_run": dry_run, "recorded": not dry_run}
    _tell(as_json, fields, f"{'would record' if dry_run else 'recorded'} {name} of {taken_at}")


@app.command()
def settle(
    name: Annotated[str, typer.Argument(help="what was restored, for the audit trail")],
    at: Annotated[str, typer.Option(help="the moment it was restored to, an ISO time or a span ago")] = "0s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only judge it")] = False,
    as_json: AsJson = False,
) -> None:
    """Finish what another tool restored, as `backup restore` does. Example: korrigo backup settle base-0301 --dry-run

    Compares rows, objects and audit trail; then ends sessions and locks, makes interrupted jobs due again and empties
    the queues. The product must be stopped.
    """
    from korrigo.backup import restoring, servers
    from korrigo.operating import moment

    restored_to = moment(at)
    with servers.instance(Home.locate()) as settings:
        objects = restoring.adopt(settings, name, restored_to, _progress(as_json), dry_run=dry_run)
    fields = {"name": name, "objects": objects, "dry_run": dry_run, "settled": not dry_run}
    _tell(as_json, fields, f"whole, {objects} objects; " + ("nothing was changed" if dry_run else "settled"))


def run_restore(which: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Do what `backup restore` and the seed's `restore_backup` promise."""
    from korrigo import rooms
    from korrigo.backup import archive, restoring, taking

    home = Home.locate()
    settings = rooms.load_settings()
    directory = taking.directory_of(home, settings)
    path = archive.find(directory, which)
    say = _progress(as_json)
    if dry_run:
        manifest = restoring.rehearse(home, settings, path)
        fields = _fields(path, manifest) | {"dry_run": True, "restored": False}
        _tell(as_json, fields, f"good: {path}, {manifest.copies} copies; nothing was changed")
        return
    say(f"reading {path}")
    wish = restoring.Wish(home, path, archive.check(path), directory, say)
    done = restoring.restore(wish, lambda: _confirm(home, wish.manifest, yes=yes))
    fields = _fields(path, done.manifest) | {
        "dry_run": False, "restored": True, "saved_as": str(done.saved_as) if done.saved_as else None,
    }  # fmt: skip
    where = f"; what was there is in {done.saved_as}" if done.saved_as else ""
    _tell(as_json, fields, f"restored {done.manifest.name}, {done.manifest.copies} copies{where}")


def _confirm(home: Home, manifest: Manifest, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Invalid("CONFIRMATION_REQUIRED", "there is data already: say --yes to replace it")
    if not typer.confirm(f"Replace everything in {home.root} by {manifest.name}?"):
        raise Invalid("CONFIRMATION_REQUIRED", "nothing was changed")


def _fields(path: Path, manifest: Manifest) -> dict[str, Any]:
    return asdict(manifest) | {"path": str(path), "copies": manifest.copies}


def _progress(as_json: bool) -> Callable[[str], None]:
    return lambda text: typer.echo(text, err=True) if as_json or not sys.stdout.isatty() else typer.echo(text)


def _tell(as_json: bool, fields: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(fields) if as_json else text)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(os.EX_TEMPFAIL)
