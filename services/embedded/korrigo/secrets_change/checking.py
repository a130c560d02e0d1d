"""Is what is configured here what the rooms and the database accept? The end of every change of a secret.

Nothing that it sends can do anything: a token that expired long ago tells by its refusal whether its signature
counts, and a room is asked for the heads of streams that nobody has.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import jwt
import psycopg

from korrigo.rooms import NAMES
from korrigo_kit.auth import AUDIENCE, PeerTokens, public_keys
from korrigo_kit.credentials import migrate_url, room_url
from korrigo_kit.errors import KorrigoError, Timeout, Unavailable
from korrigo_kit.rpc import Channels
from korrigo_kit.settings import Settings, SettingsError

_PATIENCE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check; `is_ok` None = nobody could be asked."""

    name: str
    is_ok: bool | None
    text: str


def check(settings: Settings, url: str | None) -> list[Finding]:
    """Ask everybody who accepts a secret; `url` is where the product answers people."""
    return [*_signing_key(settings, url), *_rpc(settings), *_database(settings)]


def _signing_key(settings: Settings, url: str | None) -> Iterator[Finding]:
    auth = settings.auth
    if auth.signing_key is None or not auth.signing_key.get_secret_value():
        yield Finding("signing-key", None, "only grading's settings hold it")
        return
    if not url:
        yield Finding("signing-key", None, "the product does not run here, and KORRIGO_HTTP__PUBLIC_URL is unset")
        return
    claims = {"aud": AUDIENCE, "sub": "nobody", "sid": "none", "roles": [], "iat": 1, "exp": 2}
    token = jwt.encode(claims, auth.signing_key.get_secret_value(), algorithm="EdDSA")
    for room, path in (("grading", "/api/me"), ("ingest", "/api/scans/none"), ("audit", "/api/audit/events")):
        reason = _refusal(f"{url}{path}", token)
        is_ok = None if reason is None else reason == "TOKEN_EXPIRED"
        yield Finding(f"signing-key {room}", is_ok, reason or "did not answer")
    ends = [accepted.until for accepted in public_keys(auth) if accepted.until is not None and accepted.is_good]
    if ends:
        yield Finding("signing-key previous", True, f"{len(ends)} good until {max(ends):%Y-%m-%d %H:%M} UTC")


def _refusal(url: str, token: str) -> str | None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - our own address
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS):  # noqa: S310 - as above
            return "ACCEPTED"
    except urllib.error.HTTPError as error:
        try:
            return str(json.load(error).get("reason"))
        except ValueError:
            return f"status {error.code}"
    except OSError:
        return None


def _rpc(settings: Settings) -> Iterator[Finding]:
    try:
        PeerTokens(settings.rpc, "korrigo-cli")
    except SettingsError as error:
        yield Finding("rpc", False, str(error))
        return
    channels = Channels(settings.rpc, "korrigo-cli")
    try:
        for room in NAMES:
            yield _ask(channels, room)
    finally:
        channels.close()
    if settings.rpc.previous_secret.get_secret_value():
        yield Finding("rpc previous", True, "KORRIGO_RPC__PREVIOUS_SECRET is accepted as well")


def _ask(channels: Channels, room: str) -> Finding:
    try:
        channels.heads(room, int(time.time() * 1000) + 86_400_000, "", ["none"])
    except (Unavailable, Timeout) as error:
        return Finding(f"rpc {room}", None, error.message)
    except KorrigoError as error:
        return Finding(f"rpc {room}", False, error.reason)
    return Finding(f"rpc {room}", True, "accepted")


def _database(settings: Settings) -> Iterator[Finding]:
    urls = {"owner": migrate_url(settings.database)} | {room: room_url(settings.database, room) for room in NAMES}
    if settings.broker.url.get_secret_value() == "pgmq://":
        urls["broker"] = room_url(settings.database, "broker")
    for name, url in urls.items():
        try:
            with psycopg.connect(url, connect_timeout=_PATIENCE_SECONDS):
                yield Finding(f"database {name}", True, "logs in")
        except psycopg.OperationalError as error:
            is_refused = "password authentication failed" in str(error)
            yield Finding(f"database {name}", False if is_refused else None, "refused" if is_refused else "no answer")
