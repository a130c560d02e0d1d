"""Stored form of passwords: Argon2id, two at a time.

The cost is OWASP's floor of 19 MiB, two passes, one lane (about 30 ms); a bound on how many are computed at once
keeps a storm of logins from taking the memory and the processor of the whole machine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from korrigo_kit.errors import Unavailable

_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_AT_ONCE = 2
_WAIT_SECONDS = 8.0
_slots = threading.BoundedSemaphore(_AT_ONCE)
# Always the same threads: the C library keeps the 19 MiB of every thread that ever hashed (300 MB were seen).
_hashers = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="argon2")


@contextmanager
def slot() -> Iterator[None]:
    """Wait for a turn to hash; raises Unavailable (LOGIN_BUSY). Take it before a database connection, not after."""
    if not _slots.acquire(timeout=_WAIT_SECONDS):
        raise Unavailable("LOGIN_BUSY", "too many logins at once; try again")
    try:
        yield
    finally:
        _slots.release()


def hashed(password: str) -> str:
    """Return the stored form of a password."""
    return _hashers.submit(_hasher.hash, password.encode("utf-8", "surrogatepass")).result()


def verify(stored: str | None, password: str) -> bool:
    """Tell whether the password is right; takes as long when there is no stored form."""
    try:
        _hashers.submit(_hasher.verify, stored or _dummy(), password.encode("utf-8", "surrogatepass")).result()
    except (VerificationError, InvalidHashError):
        return False
    return stored is not None


def is_outdated(stored: str) -> bool:
    """Tell whether a hash was made with other costs than today's."""
    return _hasher.check_needs_rehash(stored)


@cache
def _dummy() -> str:
    return hashed("nobody has this password")
