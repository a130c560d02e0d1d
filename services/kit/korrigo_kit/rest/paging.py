"""Lists: `{items, next_cursor}`, `?limit=&cursor=`; a cursor is opaque and holds the last key seen."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Query
from pydantic import BaseModel

from korrigo_kit.errors import Invalid

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=500, description="Most items in one answer.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")]


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    items: list[T]
    next_cursor: str | None = None


def encode_cursor(*key: Any) -> str:
    """Write the key of the last item as an opaque cursor."""
    return base64.urlsafe_b64encode(orjson.dumps(key, default=str)).decode().rstrip("=")


def decode_cursor(cursor: str | None, *kinds: type) -> list[Any] | None:
    """Read a cursor of the given key types; raises Invalid (INVALID_CURSOR)."""
    if cursor is None:
        return None
    try:
        key = orjson.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        raise Invalid("INVALID_CURSOR", "the cursor is not one of ours") from None
    if not isinstance(key, list) or len(key) != len(kinds) or any(type(a) is not b for a, b in zip(key, kinds)):  # noqa: B905
        raise Invalid("INVALID_CURSOR", "the cursor is not one of ours")
    return key
