"""`korrigo secrets rotate|check`: change what is secret without a failed request."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from korrigo import installation
from korrigo.home import Home, is_in_use
from korrigo.operating import EXIT_FOUND_PROBLEMS, AsJson, DryRun, Progress, tell

if TYPE_CHECKING:
    from korrigo.secrets_change.checking import Finding
    from korrigo_kit.settings import Settings

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
_SIGN = {True: "ok  ", False: "BAD ", None: "-   "}


@app.callback()
def secrets() -> None:
    """Change secrets, and check that everybody accepts them. Example: korrigo secrets rotate"""


@app.command()
def rotate(
    which: Annotated[list[str] | None, typer.Argument(help="signing-key, rpc, database; default: all three")] = None,
    at_once: Annotated[bool, typer.Option("--at-once", help="stolen: accept the old one no more")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for new material, where settings are not ours")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Change the key that signs sessions, the secret between the rooms, the passwords of the database's roles.

    Where `korrigo up` made a secret, it is changed in all running processes; the old one is accepted until nobody uses
    it: a signing key until the last session ends, those of machines (`korrigo user token`) included. Where settings are
    given from outside, new material and the steps are written. An account's password: `korrigo user passwd`.
    Example: korrigo secrets rotate rpc
    """
    from korrigo import rooms
    from korrigo.secrets_change import embedded, steps

    home, given = Home.locate(), dict(os.environ)
    wanted = list(dict.fromkeys(which or embedded.WHICH))
    installation.check_words(wanted, embedded.WHICH)
    if installation.is_embedded(given):
        installation.attach()
    settings = rooms.load_settings()
    ours = {name: embedded.is_ours(home, name, given) for name in wanted}
    if dry_run:
        what = {name: "would be changed here" if ours[name] else "would be written, with steps" for name in wanted}
        tell(as_json, {"dry_run": True, "secrets": what}, *(f"{name:12} {text}" for name, text in what.items()))
        return
    progress = Progress()
    lines: list[str] = []
    done: list[dict[str, Any]] = []
    for number, name in enumerate(wanted):
        progress(f"changing {name}", number)
        if ours[name]:
            changed = embedded.rotate(home, settings, name, at_once=at_once)
            done.append({"which": name, "is_changed": True, "text": changed.text})
            lines.append(f"{name}: {changed.text}")
            continue
        folder = (out or home.root / "secrets-next").absolute()
        made = steps.plan(name, settings, folder, at_once=at_once)
        done.append({"which": name, "is_changed": False, "folder": str(folder), "steps": list(made.steps)})
        lines.append(f"{name}: new material in {folder}; then:")
        lines += [f"  {place}. {text}" for place, text in enumerate(made.steps, 1)]
    progress.end()
    changed_here = [name for name in wanted if ours[name]]
    settings = rooms.load_settings()
    findings = _check(home, settings) if changed_here else []
    if changed_here:
        _record(settings, changed_here, at_once=at_once)
    is_good = all(finding.is_ok is not False for finding in findings)
    fields = {"dry_run": False, "secrets": done, "is_good": is_good, "checks": [asdict(found) for found in findings]}
    tell(as_json, fields, *lines, *_written(findings))
    if not is_good:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


@app.command()
def check(as_json: AsJson = False) -> None:
    """Ask rooms and database whether they accept what is configured here. Example: korrigo secrets check"""
    from korrigo import rooms

    home = Home.locate()
    installation.attach()
    findings = _check(home, rooms.load_settings())
    is_good = all(finding.is_ok is not False for finding in findings)
    tell(as_json, {"is_good": is_good, "checks": [asdict(found) for found in findings]}, *_written(findings))
    if not is_good:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _check(home: Home, settings: Settings) -> list[Finding]:
    from korrigo.secrets_change import checking

    url = (home.state() or {}).get("url") if is_in_use(home) else settings.http.public_url
    return checking.check(settings, str(url) if url else None)


def _written(findings: list[Finding]) -> list[str]:
    return [f"{_SIGN[found.is_ok]} {found.name:20} {found.text}" for found in findings]


def _record(settings: Settings, which: list[str], *, at_once: bool) -> None:
    """Tell the audit trail; what was changed is in force whether or not it can be told now."""
    from korrigo.switches import owner_database
    from korrigo.switches import tell as tell_audit
    from korrigo_kit.errors import KorrigoError

    database = owner_database(settings)
    try:
        with database.transaction() as tx:
            tell_audit(tx, "SECRETS_ROTATED", {"which": which, "at_once": at_once})
    except KorrigoError as error:
        typer.echo(f"not told to the audit trail: {error.message}", err=True)
    finally:
        database.close()
