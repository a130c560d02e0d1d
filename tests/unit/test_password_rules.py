"""Which passwords and user names are taken."""

from __future__ import annotations

import pytest

from korrigo_grading.domain import passwords
from korrigo_grading.models import credentials
from korrigo_kit.errors import Invalid


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("eleven-chrs", "PASSWORD_TOO_SHORT"),
        ("x" * 257, "PASSWORD_TOO_LONG"),
        ("twelve chars\x00", "INVALID_VALUE"),
        ("Ada.Lovelace", "PASSWORD_TOO_SIMPLE"),
    ],
)
def test_refused_passwords(password: str, reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        passwords.check(password, "ada.lovelace")
    assert caught.value.reason == reason


def test_twelve_characters_are_enough() -> None:
    passwords.check("x" * 12, "ada")
    passwords.check("pass phrase with spaces é", "ada")


@pytest.mark.parametrize("name", ["", "a b", "a\x00", "x" * 151, "a/b", "<script>", "\ud800"])
def test_refused_names(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        passwords.username(name)
    assert caught.value.reason == "INVALID_USERNAME"


def test_spellings_of_one_name_are_one_account() -> None:
    assert passwords.account_key("François") == passwords.account_key("FRANÇOIS")
    # A full-width letter is the same letter.
    assert passwords.username("\uff41da") == "ada"


def test_hashes_are_salted_argon2id_and_nothing_verifies_against_none() -> None:
    first, second = credentials.hashed("correct-horse"), credentials.hashed("correct-horse")
    assert first != second and first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert credentials.verify(first, "correct-horse")
    assert not credentials.verify(first, "correct-horsf")
    assert not credentials.verify(None, "nobody has this password")
