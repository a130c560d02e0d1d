"""Which passwords and user names are taken; hashing is in `models.credentials`."""

from __future__ import annotations

import re
import unicodedata

from korrigo_kit.errors import Invalid

MIN_LENGTH = 12
# Longer ones only keep the hash busy.
MAX_LENGTH = 256
MAX_USERNAME_LENGTH = 150
_USERNAME = re.compile(r"[\w.@+-]+")


def check(password: str, username: str) -> None:
    """Refuse a weak password: Invalid (PASSWORD_TOO_SHORT, PASSWORD_TOO_LONG, PASSWORD_TOO_SIMPLE, INVALID_VALUE)."""
    if len(password) < MIN_LENGTH:
        raise Invalid("PASSWORD_TOO_SHORT", f"a password has at least {MIN_LENGTH} characters", min_length=MIN_LENGTH)
    if len(password) > MAX_LENGTH:
        raise Invalid("PASSWORD_TOO_LONG", f"a password has at most {MAX_LENGTH} characters", max_length=MAX_LENGTH)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in password):
        raise Invalid("INVALID_VALUE", "a password holds no control characters")
    if password.casefold() == username.casefold():
        raise Invalid("PASSWORD_TOO_SIMPLE", "choose a password that is harder to guess")


def username(text: str) -> str:
    """Return a user name in its stored form (NFKC); raises Invalid (INVALID_USERNAME)."""
    name = unicodedata.normalize("NFKC", text)
    if not _USERNAME.fullmatch(name) or len(name) > MAX_USERNAME_LENGTH:
        raise Invalid("INVALID_USERNAME", "a user name has 1 to 150 letters, digits or . @ + - _ and no spaces")
    return name


def account_key(text: str) -> str:
    """Return what two spellings of one user name have in common: logins and uniqueness go by it."""
    return unicodedata.normalize("NFKC", text).casefold()
