"""Who calls: signed tokens of people, verified in each room, and short tokens between rooms.

People's tokens are Ed25519 JWTs that only grading can sign; every room verifies them with the public keys and a
list of revoked sessions that an event keeps fresh. Rooms call each other with HS256 JWTs of 60 seconds under the
shared secret, `aud` = the called room, which carry the id and roles of the person on whose behalf they call.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from korrigo_kit.db import Database, Tx
from korrigo_kit.errors import Forbidden, KorrigoError, Unauthenticated
from korrigo_kit.settings import AuthSettings, RpcSettings, SettingsError, Watched

AUDIENCE = "korrigo"
ROLES = ("admin", "scan_operator", "marker", "lead_marker", "student", "auditor")
# Sessions revoked in one room are refused in all within a second (decisions.md, HTTP).
REVOKED_CACHE_SECONDS = 0.5
_LEEWAY_SECONDS = 5
_PEER_TOKEN_SECONDS = 60
# RFC 7468 allows text before a block; ours says how long a replaced key is still good (`korrigo secrets rotate`).
ACCEPTED_UNTIL = "Accepted-Until:"
_PEM = re.compile(
    rf"(?:{ACCEPTED_UNTIL}[ \t]*(?P<until>\S+)\s+)?"
    r"(?P<pem>-----BEGIN (?P<label>PUBLIC KEY|CERTIFICATE)-----.+?-----END (?P=label)-----)",
    re.S,
)


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller: account, roles and session. `is_cookie` says that a browser sent it by itself."""

    user_id: str
    username: str
    roles: tuple[str, ...]
    session_id: str = ""
    csrf: str = ""
    must_change_password: bool = False
    is_cookie: bool = False
    # Unix seconds at which the session began.
    issued_at: int = 0

    def has(self, *roles: str) -> bool:
        """Tell whether the caller has one of these roles."""
        return any(role in self.roles for role in roles)

    def require(self, *roles: str) -> None:
        """Refuse (403 FORBIDDEN) a caller that has none of these roles."""
        if not self.has(*roles):
            raise Forbidden("FORBIDDEN", "your roles do not allow this", needs=list(roles))


class Signer:
    """Signs people's tokens; only the room that knows the accounts has the key."""

    def __init__(self, pem: str, token_seconds: int) -> None:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError("KORRIGO_AUTH__SIGNING_KEY is not an Ed25519 key")
        self._key = key
        self.token_seconds = token_seconds

    def token(self, principal: Principal) -> str:
        """Make an access token of the configured life."""
        now = int(time.time())
        claims = {
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + self.token_seconds,
            "sub": principal.user_id,
            "name": principal.username,
            "roles": list(principal.roles),
            "sid": principal.session_id,
            "csrf": principal.csrf,
            "mcp": principal.must_change_password,
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA")


@dataclass(frozen=True, slots=True)
class AcceptedKey:
    """A public key and the moment until which it is good; None = as long as it is listed."""

    key: Ed25519PublicKey
    until: datetime | None = None

    @property
    def is_good(self) -> bool:
        """Tell whether it may verify now."""
        return self.until is None or datetime.now(UTC) < self.until


class Verifier:
    """Verifies people's tokens; several public keys may be valid at once, for rotation.

    A token that no key verifies has the key files looked at again: it may be the first under a new one.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self._watched = Watched(settings)
        self._known = (settings, public_keys(settings))

    def verify(self, token: str, *, is_cookie: bool = False) -> Principal:
        """Return the principal of a token; raises Unauthenticated (TOKEN_EXPIRED, INVALID_TOKEN)."""
        settings, keys = self._known
        claims = self._claims(token, keys)
        newer = self._watched.newer(settings) if claims is None else None
        if newer is not None:
            self._known = (newer, public_keys(newer))
            claims = self._claims(token, self._known[1])
        if claims is None:
            raise Unauthenticated("INVALID_TOKEN", "the token is not valid")
        return Principal(
            user_id=claims["sub"],
            username=str(claims.get("name", "")),
            roles=tuple(claims["roles"]),
            session_id=claims["sid"],
            csrf=str(claims.get("csrf", "")),
            must_change_password=bool(claims.get("mcp", False)),
            is_cookie=is_cookie,
            issued_at=int(claims.get("iat", 0)),
        )

    @staticmethod
    def _claims(token: str, keys: Sequence[AcceptedKey]) -> dict[str, Any] | None:
        for accepted in keys:
            if not accepted.is_good:
                continue
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    accepted.key,
                    algorithms=["EdDSA"],
                    audience=AUDIENCE,
                    leeway=_LEEWAY_SECONDS,
                    options={"require": ["exp", "sub", "sid", "roles"]},
                )
            except jwt.ExpiredSignatureError:
                raise Unauthenticated("TOKEN_EXPIRED", "the session has ended; log in again") from None
            except jwt.InvalidTokenError:
                continue
            return claims
        return None


def public_keys(settings: AuthSettings) -> Sequence[AcceptedKey]:
    """Return the keys to verify with: that of the signing key, then the listed ones; raises SettingsError."""
    found: list[AcceptedKey] = []
    if settings.signing_key is not None and settings.signing_key.get_secret_value():
        private = serialization.load_pem_private_key(settings.signing_key.get_secret_value().encode(), password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise SettingsError("KORRIGO_AUTH__SIGNING_KEY is not an Ed25519 key")
        found.append(AcceptedKey(private.public_key()))
    if not found and not settings.public_keys:
        raise SettingsError("KORRIGO_AUTH__PUBLIC_KEYS is missing")
    for block in _PEM.finditer(settings.public_keys or ""):
        key = _public_key(block["label"], block["pem"])
        if isinstance(key, Ed25519PublicKey):
            found.append(AcceptedKey(key, _until(block["until"])))
    if not found:
        raise SettingsError("KORRIGO_AUTH__PUBLIC_KEYS holds no Ed25519 key")
    return found


def _public_key(label: str, pem: str) -> object:
    """Read a public key, or that of a certificate, of which nothing else counts (no name, no date).

    Helm can make a key pair only with a certificate around it. Raises SettingsError when it cannot be read.
    """
    try:
        if label == "CERTIFICATE":
            return x509.load_pem_x509_certificate(pem.encode()).public_key()
        return serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"KORRIGO_AUTH__PUBLIC_KEYS: a {label} cannot be read") from None


def _until(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"KORRIGO_AUTH__PUBLIC_KEYS: {ACCEPTED_UNTIL} is followed by no RFC 3339 time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class RevokedSessions:
    """The sessions that a process refuses, read from its rooms' tables at most every half second.

    Whatever one of its rooms knows holds for all of them: where grading is among them, no event need have come. A room
    that cannot be asked takes nothing from the others: what it said last counts on, and events bring what is new to
    the rest. When none can be asked nobody is let in.
    """

    def __init__(self, databases: Sequence[Database]) -> None:
        self._lock = threading.Lock()
        self._ids: dict[Database, frozenset[str]] = {database: frozenset() for database in databases}
        self._read_at = -1e9

    def __contains__(self, session_id: str) -> bool:
        with self._lock:
            if time.monotonic() - self._read_at > REVOKED_CACHE_SECONDS:
                self._read()
                self._read_at = time.monotonic()
            return any(session_id in ids for ids in self._ids.values())

    def _read(self) -> None:
        silent: list[KorrigoError] = []
        for database in self._ids:
            try:
                self._ids[database] = frozenset(_refused(database))
            except KorrigoError as error:
                silent.append(error)
        if len(silent) == len(self._ids):
            raise silent[-1]


def _refused(database: Database) -> list[str]:
    with database.transaction() as tx:
        rows = tx.all("SELECT session_id FROM revoked_sessions WHERE expires_at > clock_timestamp()")
    return [row["session_id"] for row in rows]


def revoke(tx: Tx, session_id: str, expires_at_unix: int) -> None:
    """Note a session as revoked in this room."""
    tx.run(
        "INSERT INTO revoked_sessions (session_id, expires_at) VALUES (%s, to_timestamp(%s))"
        " ON CONFLICT (session_id) DO NOTHING",
        (session_id, expires_at_unix),
    )


def accepted_secrets(settings: RpcSettings) -> list[str]:
    """Return the secrets that count between rooms, that to sign with first; raises SettingsError for a short one."""
    previous = settings.previous_secret.get_secret_value()
    found = [settings.secret.get_secret_value(), *([previous] if previous else [])]
    if any(len(secret) < 32 for secret in found):
        raise SettingsError("KORRIGO_RPC__SECRET and PREVIOUS_SECRET must have 32 characters or more")
    return found


class PeerTokens:
    """Tokens between rooms. A token that no secret accepts has the files looked at again: they may be new."""

    def __init__(self, settings: RpcSettings, room: str) -> None:
        accepted_secrets(settings)
        self._watched = Watched(settings)
        self._room = room

    def issue(self, audience: str, principal: Principal | None) -> str:
        """Make a token for one called room, on behalf of a person or of the room itself."""
        claims = {
            "iss": self._room,
            "aud": audience,
            "exp": int(time.time()) + _PEER_TOKEN_SECONDS,
            "sub": principal.user_id if principal else "",
            "roles": list(principal.roles) if principal else [],
        }
        return jwt.encode(claims, accepted_secrets(self._watched.now())[0], algorithm="HS256")

    def accept(self, token: str) -> tuple[str, Principal | None]:
        """Return the calling room and the person behind it; raises Unauthenticated (INVALID_PEER_TOKEN)."""
        settings = self._watched.now()
        claims = self._claims(token, settings)
        newer = self._watched.newer(settings) if claims is None else None
        if newer is not None:
            claims = self._claims(token, newer)
        if claims is None:
            raise Unauthenticated("INVALID_PEER_TOKEN", "the call between rooms is not signed")
        person = Principal(claims["sub"], "", tuple(claims["roles"])) if claims.get("sub") else None
        return str(claims["iss"]), person

    def _claims(self, token: str, settings: RpcSettings) -> dict[str, Any] | None:
        for secret in accepted_secrets(settings):
            try:
                claims: dict[str, Any] = jwt.decode(
                    token, secret, algorithms=["HS256"], audience=self._room, options={"require": ["exp", "iss"]}
                )
            except jwt.InvalidTokenError:
                continue
            return claims
        return None


def new_csrf() -> str:
    """Make the secret that a browser must send back with every change."""
    return secrets.token_urlsafe(24)
