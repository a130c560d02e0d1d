"""`korrigo user add|passwd|token|list`: accounts, for whoever holds the machine."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from korrigo import installation

if TYPE_CHECKING:
    from korrigo_grading.models.accounts import Account

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="change nothing")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="read the password from standard input")]
MustChange = Annotated[bool, typer.Option("--must-change-password", help="the user must choose another at first")]


@app.callback()
def user() -> None:
    """Add and list accounts, set passwords, make tokens for machines. Example: korrigo user list"""


@app.command()
def add(
    username: str,
    role: Annotated[
        list[str], typer.Option(help="admin, scan_operator, marker, lead_marker, student, auditor (repeatable)")
    ],
    email: Annotated[str | None, typer.Option(help="address, optional")] = None,
    password_stdin: FromStdin = False,
    must_change_password: MustChange = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make an account; without a given password one is made and printed. Example: korrigo user add zoe --role marker"""
    from korrigo.runtimes import runtime
    from korrigo_grading.flows import accounts

    installation.attach()
    password, is_made = _password(from_stdin=password_stdin)
    if dry_run:
        _tell(as_json, {"dry_run": True, "username": username, "roles": role}, f"would make account {username}")
        return
    with runtime("grading") as grading:
        made = accounts.add_user(
            grading, username, password, role, email=email, must_change_password=must_change_password
        )
    told = {"password": password} if is_made else {}
    text = f"account {made.username} made" + (f", password {password}" if is_made else "")
    _tell(as_json, _fields(made) | told, text)


@app.command()
def passwd(
    username: str,
    password_stdin: FromStdin = False,
    must_change_password: MustChange = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give an account a new password and end its sessions. Example: korrigo user passwd admin"""
    from korrigo.runtimes import runtime
    from korrigo_grading.flows import accounts

    installation.attach()
    password, is_made = _password(from_stdin=password_stdin)
    with runtime("grading") as grading:
        if dry_run:
            found = accounts.by_name(grading, username)
            _tell(as_json, _fields(found) | {"dry_run": True}, f"would change the password of {found.username}")
            return
        changed = accounts.set_password(grading, username, password, must_change_password=must_change_password)
    told = {"password": password} if is_made else {}
    text = f"password of {changed.username} changed" + (f" to {password}" if is_made else "")
    _tell(as_json, _fields(changed) | told, text)


@app.command()
def token(
    username: str,
    days: Annotated[int, typer.Option(help="how long it is good", min=1, max=400)] = 366,
    out: Annotated[Path | None, typer.Option(help="file to write it to (0600); default: standard output")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a long-lived token for a machine, such as Alertmanager; its account may have the role auditor only.

    It ends with `korrigo sessions clear`. Example: korrigo user token alertmanager --out alertmanager-token
    """
    from korrigo.runtimes import runtime
    from korrigo_grading.flows import accounts, sessions

    installation.attach()
    with runtime("grading") as grading:
        if dry_run:
            found = accounts.by_name(grading, username)
            _tell(as_json, {"dry_run": True, "username": found.username}, f"would make a token for {found.username}")
            return
        login = sessions.issue(grading, username, days * 86400)
    if out is not None:
        # Kept as it is when it exists: its owner is the machine's own, such as Prometheus.
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(login.token + "\n")
    told: dict[str, object] = {"token": login.token} if out is None else {"out": str(out)}
    text = login.token if out is None else f"token written to {out}, good for {days} days"
    _tell(as_json, {"username": login.account.username, "expires_in": login.expires_in, **told}, text)


@app.command("list")
def list_accounts(as_json: AsJson = False) -> None:
    """List every account. Example: korrigo user list --json"""
    from korrigo.runtimes import runtime
    from korrigo_grading.flows import accounts

    installation.attach()
    with runtime("grading") as grading:
        found = accounts.list_users(grading)
    if as_json:
        typer.echo(json.dumps({"items": [_fields(account) for account in found]}, default=str))
        return
    for account in found:
        state = "" if account.is_active else "  closed"
        typer.echo(f"{account.username:30}  {','.join(account.roles)}{state}")


def _password(*, from_stdin: bool) -> tuple[str, bool]:
    """Return a password and whether we made it; never taken from the command line, where others could read it."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\n"), False
    if sys.stdin.isatty() and sys.stdout.isatty():
        typed: str = typer.prompt("Password (empty: make one)", default="", hide_input=True, show_default=False)
        if typed:
            return typed, False
    return secrets.token_urlsafe(15), True


def _fields(account: Account) -> dict[str, object]:
    return asdict(account) | {"roles": list(account.roles)}


def _tell(as_json: bool, fields: dict[str, object], text: str) -> None:
    typer.echo(json.dumps(fields, default=str) if as_json else text)
