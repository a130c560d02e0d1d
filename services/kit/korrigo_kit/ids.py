"""Identifiers: UUIDv7 for rows (locality, never order) and random codes for people."""

from __future__ import annotations

import secrets
import time
import uuid

# Crockford's base 32: no I, L, O, U, so that a code read aloud or copied by hand stays right.
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def uuid7() -> uuid.UUID:
    """Make a UUIDv7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, then random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def new_id() -> str:
    """Make a row id as text."""
    return str(uuid7())


def random_code(length: int = 6) -> str:
    """Make a random code in Crockford's alphabet (domain.md 1.10: it must not follow the scan order)."""
    return "".join(secrets.choice(CROCKFORD) for _ in range(length))


def is_uuid(text: str) -> bool:
    """Tell whether the text is a UUID in canonical form."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
