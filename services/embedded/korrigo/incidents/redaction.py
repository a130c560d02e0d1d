"""Nothing secret and no name leaves in a bundle: every text goes through here on its way in.

Two nets. Shapes are always cut: passwords in addresses, tokens, keys, e-mail addresses. What this installation's
secrets and names really are is looked up and cut as well; while the database is away the names are unknown, and only
what holds none by its make goes in (log lines are free of names by the rules of the house, and tests hold them to it).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from urllib.parse import quote

import sqlalchemy
from pydantic import SecretStr

from korrigo import switches
from korrigo.home import Home
from korrigo_kit.credentials import database_roles, role_password
from korrigo_kit.settings import Settings

CUT = "***"
# Accounts that every installation has; their names say nothing.
_KNOWN_TO_ALL = {"admin", "system"}
_SHORTEST_SECRET, _SHORTEST_NAME = 6, 2
_SHAPES = (
    (re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"), CUT),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), CUT),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.S), CUT),
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}"), rf"\1 {CUT}"),
    (re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"), f"{CUT}@{CUT}"),
)
_NAMES = (
    "SELECT username AS name FROM grading.users UNION SELECT email FROM grading.users WHERE email IS NOT NULL"
    " UNION SELECT name FROM grading.exams UNION SELECT filename FROM ingest.scans"
)


class Redactor:
    """Cuts what is secret, and names, out of texts; `knows_names` False = the database could not be asked."""

    def __init__(self, words: Iterable[str], names: Iterable[str], *, knows_names: bool = True) -> None:
        self.knows_names = knows_names
        wanted = {word for word in words if len(word) >= _SHORTEST_SECRET}
        wanted |= {name for name in names if len(name) >= _SHORTEST_NAME and name.lower() not in _KNOWN_TO_ALL}
        # The longest first, so that no part of a longer one is left.
        self._words = sorted(wanted, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return a text without any of them."""
        for shape, cut in _SHAPES:
            text = shape.sub(cut, text)
        folded = text.casefold()
        for word in self._words:
            if word.casefold() in folded:
                text = re.sub(_bounded(word), CUT, text, flags=re.IGNORECASE)
                folded = text.casefold()
        return text


def _bounded(word: str) -> str:
    """Match a word wherever it stands; a short one only by itself, or it would tear other words apart."""
    escaped = re.escape(word)
    return rf"(?<!\w){escaped}(?!\w)" if len(word) < 4 else escaped


def of(settings: Settings, home: Home) -> Redactor:
    """Make the redactor of an installation."""
    from korrigo_kit.errors import KorrigoError

    secrets = [*_given(settings), *_kept(home), *_derived(settings)]
    words = [*secrets, *(quote(word, safe="") for word in secrets)]
    words += [base64.b64encode(word.encode()).decode() for word in secrets]
    try:
        return Redactor(words, _names(settings))
    except KorrigoError:
        return Redactor(words, (), knows_names=False)


def _given(settings: Settings) -> list[str]:
    found = [settings.admin_password.get_secret_value()] if settings.admin_password else []
    for section in settings.sections.values():
        for key in type(section).model_fields:
            value = getattr(section, key)
            if isinstance(value, SecretStr) and value.get_secret_value():
                found += _parts(value.get_secret_value())
    return found


def _parts(secret: str) -> list[str]:
    """Return a secret, the lines of a key, and the password of an address."""
    parts = [secret, *(line for line in secret.splitlines() if not line.startswith("-----"))]
    if "://" in secret:
        parts.append(str(sqlalchemy.make_url(secret).password or ""))
    return parts


def _kept(home: Home) -> list[str]:
    found: list[str] = []
    for path in (home.admin_password_file, *sorted(home.secrets.glob("*"))):
        try:
            found += _parts(path.read_text().strip())
        except (OSError, ValueError):
            continue
    return found


def _derived(settings: Settings) -> list[str]:
    if not settings.database.url.get_secret_value():
        return []
    roles = (*database_roles(settings.database), "korrigo_support")
    return [role_password(settings.database, role) for role in roles]


def _names(settings: Settings) -> list[str]:
    database = switches.owner_database(settings)
    try:
        with database.transaction() as tx:
            return [str(row["name"]) for row in tx.all(_NAMES)]
    finally:
        database.close()
