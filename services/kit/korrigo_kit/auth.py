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

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from korrigo_kit.db import Database, Tx
from korrigo_kit.errors import Forbidden, Unauthenticated
from korrigo_kit.settings import AuthSettings, SettingsError

AUDIENCE = "korrigo"
ROLES = ("admin", "scan_operator", "marker", "lead_marker", "student", "auditor")
# Sessions revoked in one room are refused in all within a second (decisions.md, HTTP).
REVOKED_CACHE_SECONDS = 0.5
_LEEWAY_SECONDS = 5
_PEER_TOKEN_SECONDS = 60
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.S)


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


class Verifier:
    """Verifies people's tokens; several public keys may be valid at once, for rotation."""

    def __init__(self, settings: AuthSettings) -> None:
        self._keys = _public_keys(settings)

    def verify(self, token: str, *, is_cookie: bool = False) -> Principal:
        """Return the principal of a token; raises Unauthenticated (TOKEN_EXPIRED, INVALID_TOKEN)."""
        claims = None
        for key in self._keys:
            try:
                claims = jwt.decode(
                    token,
                    key,
                    algorithms=["EdDSA"],
                    audience=AUDIENCE,
                    leeway=_LEEWAY_SECONDS,
                    options={"require": ["exp", "sub", "sid", "roles"]},
                )
                break
            except jwt.ExpiredSignatureError:
                raise Unauthenticated("TOKEN_EXPIRED", "the session has ended; log in again") from None
            except jwt.InvalidTokenError:
                continue
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


def _public_keys(settings: AuthSettings) -> Sequence[Ed25519PublicKey]:
    if settings.public_keys:
        keys = [serialization.load_pem_public_key(pem.encode()) for pem in _PEM.findall(settings.public_keys)]
    elif settings.signing_key is not None:
        private = serialization.load_pem_private_key(settings.signing_key.get_secret_value().encode(), password=None)
        assert isinstance(private, Ed25519PrivateKey)
        keys = [private.public_key()]
    else:
        raise SettingsError("KORRIGO_AUTH__PUBLIC_KEYS is missing")
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not found:
        raise SettingsError("KORRIGO_AUTH__PUBLIC_KEYS holds no Ed25519 key")
    return found


class RevokedSessions:
    """The sessions that a process refuses, read from its rooms' tables at most every half second.

    Whatever one of its rooms knows holds for all of them: where grading is among them, no event need have come.
    """

    def __init__(self, databases: Sequence[Database]) -> None:
        self._databases = databases
        self._lock = threading.Lock()
        self._ids: frozenset[str] = frozenset()
        self._read_at = -1e9

    def __contains__(self, session_id: str) -> bool:
        with self._lock:
            if time.monotonic() - self._read_at > REVOKED_CACHE_SECONDS:
                self._ids = frozenset(found for database in self._databases for found in _refused(database))
                self._read_at = time.monotonic()
            return session_id in self._ids


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


class PeerTokens:
    """Tokens between rooms."""

    def __init__(self, secret: str, room: str) -> None:
        if len(secret) < 32:
            raise SettingsError("KORRIGO_RPC__SECRET must have 32 characters or more")
        self._secret = secret
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
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def accept(self, token: str) -> tuple[str, Principal | None]:
        """Return the calling room and the person behind it; raises Unauthenticated (INVALID_PEER_TOKEN)."""
        try:
            claims = jwt.decode(
                token, self._secret, algorithms=["HS256"], audience=self._room, options={"require": ["exp", "iss"]}
            )
        except jwt.InvalidTokenError:
            raise Unauthenticated("INVALID_PEER_TOKEN", "the call between rooms is not signed") from None
        person = Principal(claims["sub"], "", tuple(claims["roles"])) if claims.get("sub") else None
        return str(claims["iss"]), person


def new_csrf() -> str:
    """Make the secret that a browser must send back with every change."""
    return secrets.token_urlsafe(24)
