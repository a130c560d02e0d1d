"""The secrets of this home's instance, changed while it runs.

Every process reads the files of its secrets again, a second later at most, or at once when a token is refused
(`korrigo_kit.settings.Watched`). So a change is an order of writing files in which, at every moment and wherever a
kill falls, whatever is signed with is accepted as well:

    signing-key   the old public key is listed with its end  ->  the new key signs
    rpc           the old secret is listed as previous  ->  the new one signs  ->  after a while the old one is dropped
    database      noted  ->  roles changed in a transaction, files replaced before its commit  ->  the note is removed

A change of passwords that was cut short is done to its end by the next `secrets rotate database`, or by the next
start of `korrigo up` (`korrigo.postgres`).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import psycopg
from cryptography.hazmat.primitives import serialization
from psycopg import sql

from korrigo import installation, postgres
from korrigo.home import Home, is_in_use, replace_file
from korrigo.secrets_change import children
from korrigo_kit.auth import ACCEPTED_UNTIL, public_keys
from korrigo_kit.credentials import database_roles, role_password
from korrigo_kit.errors import StateConflict, Unavailable
from korrigo_kit.settings import AuthSettings, DatabaseSettings, Settings, load

VARIABLES = {
    "signing-key": "KORRIGO_AUTH__SIGNING_KEY",
    "rpc": "KORRIGO_RPC__SECRET",
    "database": "KORRIGO_DATABASE__URL",
}
WHICH = tuple(VARIABLES)
# Until nobody signs with the old secret: a second until the files are read, five for what is on its way.
_GRACE_SECONDS = 6.0
_SUPPORT = "korrigo_support"
# Their connections to the queues keep the password that they were made with; the api's do not.
_HOLDERS = ("relay", "sweeper", "worker")


@dataclass(frozen=True, slots=True)
class Changed:
    """What was done to one secret, for the person and the audit trail."""

    which: str
    text: str


def is_ours(home: Home, which: str, environ: Mapping[str, str]) -> bool:
    """Tell whether a secret lies in the home, and was not given by whoever runs the instance."""
    names = {"signing-key": "signing-key.pem", "rpc": "rpc-secret", "database": postgres.PASSWORD_FILE}
    return not installation.has(environ, VARIABLES[which]) and (home.secrets / names[which]).exists()


def rotate(home: Home, settings: Settings, which: str, *, at_once: bool) -> Changed:
    """Change one secret; raises StateConflict (NOT_RUNNING) for the database's when it does not run."""
    acts = {"signing-key": _signing_key, "rpc": _rpc, "database": _database}
    return acts[which](home, settings, at_once)


def _signing_key(home: Home, settings: Settings, at_once: bool) -> Changed:
    path, listed = home.secrets / "signing-key.pem", home.secrets / "public-keys.pem"
    now = datetime.now(UTC)
    if at_once:
        replace_file(listed, "")
        replace_file(path, installation.new_signing_key() + "\n")
        return Changed("signing-key", "changed; everybody logs in again")
    until = max(now + timedelta(seconds=settings.auth.token_seconds + 60), _last_session_ends(settings) or now)
    fresh = load(environ={f"{VARIABLES['signing-key']}_FILE": str(path), **_listed(listed)}).get(AuthSettings)
    blocks = []
    for number, accepted in enumerate(public_keys(fresh)):
        # The first is that of the signing key; the others were replaced earlier and may have ended by now.
        ends_at = until if number == 0 else accepted.until
        if ends_at is not None and ends_at > now:
            pem = accepted.key.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            blocks.append(f"{ACCEPTED_UNTIL} {ends_at.isoformat(timespec='seconds')}\n{pem.decode()}")
    replace_file(listed, "".join(blocks))
    replace_file(path, installation.new_signing_key() + "\n")
    return Changed("signing-key", f"changed; sessions that live are good until {until:%Y-%m-%d %H:%M} UTC")


def _listed(path: object) -> dict[str, str]:
    return {"KORRIGO_AUTH__PUBLIC_KEYS_FILE": str(path)} if os.path.exists(str(path)) else {}


def _last_session_ends(settings: Settings) -> datetime | None:
    """Tell when the last session that lives will end; tokens of machines live longer than those of people."""
    from korrigo.runtimes import runtime
    from korrigo_grading.flows import sessions

    try:
        with runtime("grading", settings) as grading:
            return sessions.last_end(grading)
    except Unavailable:
        return None


def _rpc(home: Home, settings: Settings, at_once: bool) -> Changed:
    path, previous = home.secrets / "rpc-secret", home.secrets / "rpc-secret-previous"
    replace_file(previous, "" if at_once else path.read_text())
    replace_file(path, secrets.token_urlsafe(32) + "\n")
    if at_once:
        return Changed("rpc", "changed; what was on its way is sent again")
    if is_in_use(home):
        time.sleep(_GRACE_SECONDS)
    replace_file(previous, "")
    return Changed("rpc", "changed; the previous secret is accepted no more")


def _database(home: Home, settings: Settings, at_once: bool) -> Changed:
    if not is_in_use(home):
        raise StateConflict("NOT_RUNNING", "the database's passwords are changed while `korrigo up` runs: start it")
    path = home.secrets / postgres.PASSWORD_FILE
    note = postgres.password_change_file(home)
    old = path.read_text().strip()
    wish: dict[str, Any] = {"password": secrets.token_urlsafe(32), "previous": old}
    if note.exists():
        wish = json.loads(note.read_text())
    url = installation.database_url_file(home).read_text().strip()
    new_url = _with_password(url, wish["password"])
    with _administrator(url, [old, wish["password"], wish["previous"]]) as connection:
        wish["verifiers"] = _verifiers(connection, new_url, wish["password"])
        replace_file(note, json.dumps(wish))
        with connection.transaction():
            for role, verifier in wish["verifiers"].items():
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
                )
            # Before the commit, so that whoever is refused from then on finds what is new.
            replace_file(path, wish["password"] + "\n")
            installation.note_database(home, new_url)
        note.unlink()
    children.restart(home, _HOLDERS)
    return Changed("database", f"{len(wish['verifiers'])} roles changed; {', '.join(_HOLDERS)} started anew")


@contextmanager
def _administrator(url: str, passwords: list[str]) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Log in with the first of the passwords that counts; after a change cut short it may be any of them."""
    refused: psycopg.OperationalError | None = None
    for password in dict.fromkeys(passwords):
        try:
            connection = psycopg.connect(_with_password(url, password), autocommit=True, connect_timeout=5)
        except psycopg.OperationalError as error:
            refused = error
            continue
        with connection:
            connection.execute("SET lock_timeout = '5s'")
            yield connection
        return
    raise Unavailable("DATABASE_UNAVAILABLE", "the database does not let the administrator in") from refused


def _verifiers(connection: psycopg.Connection[tuple[object, ...]], new_url: str, password: str) -> dict[str, str]:
    """Compute what PostgreSQL stores, so that no password is in a statement that others may see."""
    derived = DatabaseSettings.model_validate({"url": new_url})
    wanted = {postgres.ADMIN: password} | {
        role: role_password(derived, role) for role in (*database_roles(derived), _SUPPORT)
    }
    rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (list(wanted),)).fetchall()
    return {
        role: connection.pgconn.encrypt_password(wanted[role].encode(), role.encode(), b"scram-sha-256").decode()
        for role in sorted(str(row[0]) for row in rows)
    }


def _with_password(url: str, password: str) -> str:
    head, _, tail = url.partition("@")
    return f"{head.rpartition(':')[0]}:{quote(password, safe='')}@{tail}"
