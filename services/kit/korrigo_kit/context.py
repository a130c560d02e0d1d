"""What a log line, an event and a call to a peer must know of the request that caused them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_fields: ContextVar[dict[str, Any]] = ContextVar("korrigo_context", default={})  # noqa: B039 - never mutated

# A client may choose its request id, but never inject a line into a log (domain.md 1.19).
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def get(name: str) -> Any:
    """Return one field of the current context, or None."""
    return _fields.get().get(name)


def snapshot() -> dict[str, Any]:
    """Copy all fields, to hand them to another thread."""
    return dict(_fields.get())


@contextmanager
def bind(**fields: Any) -> Iterator[None]:
    """Add fields for the length of a block; None values are left out."""
    token = _fields.set({**_fields.get(), **{key: value for key, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _fields.reset(token)


def add(**fields: Any) -> None:
    """Add fields until the enclosing `bind` ends."""
    _fields.set({**_fields.get(), **{key: value for key, value in fields.items() if value is not None}})


def request_id() -> str:
    """Return the current request id, or the empty string."""
    value = get("request_id")
    return value if isinstance(value, str) else ""


def accept_request_id(offered: str | None) -> str:
    """Keep a valid request id from a client, or make a new one."""
    if offered and REQUEST_ID.fullmatch(offered):
        return offered
    return secrets.token_hex(16)
