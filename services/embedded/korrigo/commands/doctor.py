"""`korrigo doctor`: what keeps the product from running here, and how the running one feels."""

from __future__ import annotations

import json
import os
import resource
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from korrigo import installation, postgres
from korrigo.home import Home, is_in_use
from korrigo.privileges import database_user, first_unreachable
from korrigo_kit.errors import KorrigoError

app = typer.Typer(add_completion=False, rich_markup_mode=None)
EXIT_FOUND_PROBLEMS = 9
_MIN_FREE_SHARE = 0.10  # uploads are refused below this (reliability.md 13)
_MIN_FILES = 1024
_PATIENCE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check; `is_ok` None = not applicable now."""

    name: str
    is_ok: bool | None
    text: str


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """Check this machine and the running product; exit code 9 when something is wrong. Example: korrigo doctor"""
    home = Home.locate()
    findings = [_ask(name, check, home) for name, check in CHECKS.items()]
    if as_json:
        typer.echo(json.dumps({"home": str(home.root), "checks": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            sign = {True: "ok  ", False: "BAD ", None: "-   "}[finding.is_ok]
            typer.echo(f"{sign} {finding.name:12} {finding.text}")
    if any(finding.is_ok is False for finding in findings):
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _ask(name: str, check: Callable[[Home], tuple[bool | None, str]], home: Home) -> Finding:
    try:
        is_ok, text = check(home)
    except KorrigoError as error:
        is_ok, text = False, f"{error.message} ({error.reason})"
    except OSError as error:
        is_ok, text = False, str(error)
    return Finding(name, is_ok, text)


def _settings(home: Home) -> tuple[bool | None, str]:
    from korrigo import rooms
    from korrigo_kit.settings import SettingsError

    if installation.is_embedded(os.environ) and installation.database_url_file(home).exists():
        installation.attach()
    try:
        given = sum(origin != "default" for _, _, origin in rooms.load_settings().show())
    except SettingsError as error:
        return False, str(error)
    return True, f"{given} given, all known"


def _home(home: Home) -> tuple[bool | None, str]:
    if not home.root.exists():
        return None, f"{home.root} will be made at the first start"
    blocked = first_unreachable(home.root, database_user())
    if blocked is not None:
        return False, f"the database's user cannot enter {blocked}"
    return os.access(home.root, os.W_OK), str(home.root)


def _disk(home: Home) -> tuple[bool | None, str]:
    folder = next(path for path in (home.root, *home.root.parents) if path.exists())
    usage = shutil.disk_usage(folder)
    return usage.free / usage.total >= _MIN_FREE_SHARE, f"{usage.free >> 20} MB free of {usage.total >> 20} MB"


def _files(_: Home) -> tuple[bool | None, str]:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft >= _MIN_FILES, f"{soft} open files per process"


def _postgres(home: Home) -> tuple[bool | None, str]:
    if not installation.is_embedded(os.environ):
        return None, "another server is configured"
    found = postgres.find_binaries(os.environ, home.postgres / "data")
    return True, f"PostgreSQL {found.major} in {found.folder}"


def _running(home: Home) -> tuple[bool | None, str]:
    if not is_in_use(home):
        return None, "`korrigo up` does not run on this home"
    state = home.state() or {}
    restarts = ", ".join(f"{name} {count}" for name, count in state.get("restarts", {}).items())
    text = f"{state.get('url')} since {state.get('started_at')}" + (f"; restarted: {restarts}" if restarts else "")
    return bool(state.get("is_ready")), text


def _database(home: Home) -> tuple[bool | None, str]:
    if not os.environ.get("KORRIGO_DATABASE__URL") and not is_in_use(home):
        return None, "not running"
    from korrigo import rooms
    from korrigo.commands.migrate import due
    from korrigo_kit.settings import SettingsError

    try:
        behind = due(rooms.load_settings())
    except SettingsError:
        return None, "the settings come first"
    return not behind, "; ".join(behind) or "answers, every schema is at its newest version"


def _health(home: Home) -> tuple[bool | None, str]:
    url = (home.state() or {}).get("url") if is_in_use(home) else os.environ.get("KORRIGO_HTTP__PUBLIC_URL")
    if not url or not url.startswith(("http://", "https://")):
        return None, "not running"
    with urllib.request.urlopen(f"{url}/api/health", timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310 - checked
        found = json.load(answer)
    return found.get("status") == "healthy", json.dumps(found)


CHECKS: dict[str, Callable[[Home], tuple[bool | None, str]]] = {
    "home": _home,
    "disk": _disk,
    "files": _files,
    "postgres": _postgres,
    "settings": _settings,
    "running": _running,
    "database": _database,
    "health": _health,
}
