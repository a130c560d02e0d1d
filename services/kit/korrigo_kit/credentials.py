"""Which URL a room logs in with: given, or derived from the one of the installation.

A derived role's password is an HMAC of the installation's, so that one secret sets up four roles that do not
know each other's, and `migrate` and the rooms compute the same without talking.
"""

from __future__ import annotations

import hashlib
import hmac

import sqlalchemy
from pydantic import SecretStr

from korrigo_kit.db import with_user
from korrigo_kit.settings import DatabaseSettings, SettingsError


def role_password(settings: DatabaseSettings, role: str) -> str:
    """Derive a role's password from the installation's URL."""
    parsed = sqlalchemy.make_url(settings.url.get_secret_value())
    secret = str(parsed.password or "")
    return hmac.new(secret.encode(), role.encode(), hashlib.sha256).hexdigest()


def room_url(settings: DatabaseSettings, room: str) -> str:
    """Return the URL of role korrigo_ROOM; raises SettingsError when none is given and none can be derived."""
    given: SecretStr | None = getattr(settings, f"{room}_url", None)
    if given is not None:
        return given.get_secret_value()
    if not settings.url.get_secret_value():
        raise SettingsError("KORRIGO_DATABASE__URL is missing")
    role = f"korrigo_{room}"
    return with_user(settings.url.get_secret_value(), role, role_password(settings, role))


def migrate_url(settings: DatabaseSettings) -> str:
    """Return the URL that `migrate` logs in with."""
    chosen = settings.migrate_url or settings.url
    if not chosen.get_secret_value():
        raise SettingsError("KORRIGO_DATABASE__URL is missing")
    return chosen.get_secret_value()


def database_roles(settings: DatabaseSettings) -> list[str]:
    """List the roles that rooms and broker log in with, as far as this process knows them."""
    rooms = ("ingest", "grading", "render", "audit")
    given = [getattr(settings, f"{room}_url") for room in rooms]
    named = [sqlalchemy.make_url(url.get_secret_value()).username for url in given if url is not None]
    return [*(f"korrigo_{room}" for room in (*rooms, "broker")), *(name for name in named if name)]
