"""New material, and the steps to take it into an installation whose settings are somebody else's.

Settings named with `_FILE` are read again by the running processes (`korrigo_kit.settings.Watched`): there a step
is writing a file on every machine. Those given as plain variables need a restart of each process, one after another.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import sqlalchemy
from cryptography.hazmat.primitives import serialization
from psycopg import sql

from korrigo import installation
from korrigo.home import replace_file
from korrigo_kit.auth import ACCEPTED_UNTIL, public_keys
from korrigo_kit.credentials import database_roles, migrate_url, role_password
from korrigo_kit.errors import Invalid
from korrigo_kit.settings import AuthSettings, DatabaseSettings, Settings

_FILES = "with _FILE write the file, which is read at once; else restart one process after another"


@dataclass(frozen=True, slots=True)
class Plan:
    """Files that were written, by their purpose, and what to do with them, in order."""

    files: tuple[Path, ...]
    steps: tuple[str, ...]


def plan(which: str, settings: Settings, folder: Path, *, at_once: bool) -> Plan:
    """Write new material into a folder (0700) and say what to do with it; nothing else is changed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    makers = {"signing-key": _signing_key, "rpc": _rpc, "database": _database}
    return makers[which](settings, folder, at_once)


def _signing_key(settings: Settings, folder: Path, at_once: bool) -> Plan:
    private, public = folder / "signing-key.pem", folder / "public-keys.pem"
    replace_file(private, installation.new_signing_key() + "\n")
    fresh = AuthSettings.model_validate({"signing_key": private.read_text()})
    blocks = [_pem(fresh, "")]
    if not at_once:
        until = datetime.now(UTC) + timedelta(seconds=settings.auth.token_seconds + 3600)
        blocks.append(_pem(settings.auth, f"{ACCEPTED_UNTIL} {until.isoformat(timespec='seconds')}\n"))
    replace_file(public, "".join(blocks))
    return Plan(
        (private, public),
        (
            f"every room: KORRIGO_AUTH__PUBLIC_KEYS = {public.name}; {_FILES}",
            f"then grading: KORRIGO_AUTH__SIGNING_KEY = {private.name}; {_FILES}",
            "korrigo secrets check",
            *(() if at_once else ("nothing to tidy up: the old key ends by its line Accepted-Until",)),
        ),
    )


def _pem(settings: AuthSettings, head: str) -> str:
    keys = [accepted.key for accepted in public_keys(settings)][:1]
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return "".join(head + key.public_bytes(encoding, form).decode() for key in keys)


def _rpc(settings: Settings, folder: Path, at_once: bool) -> Plan:
    new, old = folder / "rpc-secret", folder / "rpc-secret-previous"
    replace_file(new, secrets.token_urlsafe(32) + "\n")
    replace_file(old, settings.rpc.secret.get_secret_value() + "\n")
    files = (new, old)
    everywhere = "every process of every room"
    if at_once:
        return Plan(
            files,
            (f"{everywhere}: KORRIGO_RPC__SECRET = {new.name}; calls fail until all have it", "korrigo secrets check"),
        )
    return Plan(
        files,
        (
            f"{everywhere}: KORRIGO_RPC__PREVIOUS_SECRET = {new.name}, so that the new one is accepted; {_FILES}",
            f"{everywhere}: KORRIGO_RPC__SECRET = {new.name}, KORRIGO_RPC__PREVIOUS_SECRET = {old.name}; {_FILES}",
            "korrigo secrets check",
            f"when it is good, {everywhere}: remove KORRIGO_RPC__PREVIOUS_SECRET (empty the file); {_FILES}",
            "korrigo secrets check",
        ),
    )


def _database(settings: Settings, folder: Path, at_once: bool) -> Plan:
    database = settings.database
    given = [room for room in installation.ROOMS if getattr(database, f"{room}_url") is not None]
    if given:
        raise Invalid(
            "ROLES_ARE_GIVEN",
            f"KORRIGO_DATABASE__{given[0].upper()}_URL is given: change its role's password, then the URL",
        )
    url = sqlalchemy.make_url(database.url.get_secret_value())
    password = secrets.token_urlsafe(32)
    new_url = url.set(password=password).render_as_string(hide_password=False)
    derived = DatabaseSettings.model_validate({"url": new_url})
    wanted = {str(url.username): password} | {role: role_password(derived, role) for role in _roles(derived)}
    statements, url_file = folder / "roles.sql", folder / "database-url"
    with psycopg.connect(migrate_url(database), connect_timeout=5) as connection:
        rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (list(wanted),)).fetchall()
        lines = ["BEGIN;"]
        for role in sorted(row[0] for row in rows):
            verifier = connection.pgconn.encrypt_password(wanted[role].encode(), role.encode(), b"scram-sha-256")
            alter = sql.SQL("ALTER ROLE {} PASSWORD {};").format(sql.Identifier(role), sql.Literal(verifier.decode()))
            lines.append(alter.as_string(connection))
    replace_file(statements, "\n".join([*lines, "COMMIT;", ""]))
    replace_file(url_file, new_url + "\n")
    return Plan(
        (statements, url_file),
        (
            f"every machine: put {url_file.name} where KORRIGO_DATABASE__URL_FILE points; connections that live go on",
            f"psql -f {statements.name}, as a role that may change roles, at once after the step before",
            "every process, one after another: restart (with _FILE only the relays, sweepers and workers on pgmq://)",
            "korrigo secrets check",
        ),
    )


def _roles(derived: DatabaseSettings) -> Sequence[str]:
    return (*database_roles(derived), "korrigo_support")
