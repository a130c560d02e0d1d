"""A blob store whose failures are counted by operation; what `Runtime.blobs` is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from korrigo_kit.blobs import BlobStore
from korrigo_kit.errors import Exhausted, Unavailable
from korrigo_kit.telemetry.metrics import object_store_errors_total

# Method of the store -> operation of the metric; a method that is not named here is one on metadata.
_OPERATIONS = {
    "put_file": "put",
    "put_bytes": "put",
    "recover": "put",
    "read": "get",
    "fetch": "get",
    "stream": "get",
    "delete": "delete",
    "discard": "delete",
    "destroy": "delete",
    "empty_trash": "delete",
    "list": "list",
}


def count_errors(store: BlobStore) -> BlobStore:
    """Wrap a store such that every operation that it did not do is counted."""
    return cast("BlobStore", _Counted(store))


class _Counted:
    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return _counting(found, _OPERATIONS.get(name, "head")) if callable(found) else found


def _counting(call: Callable[..., Any], operation: str) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        try:
            answer = call(*arguments, **named)
        except (Unavailable, Exhausted):
            object_store_errors_total.labels(operation).inc()
            raise
        return _watched(answer, operation) if isinstance(answer, Iterator) else answer

    return counted


def _watched(pieces: Iterator[Any], operation: str) -> Iterator[Any]:
    try:
        yield from pieces
    except (Unavailable, Exhausted):
        object_store_errors_total.labels(operation).inc()
        raise
