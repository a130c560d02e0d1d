"""Idempotency-Key: the same key and the same request give the same answer, once (kept 24 hours).

The answer is stored in the transaction of the change itself, so that either both exist or neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from fastapi import Header

from korrigo_kit.db import Database, Tx, UniqueViolation
from korrigo_kit.errors import Invalid, StateConflict

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, description="Repeat with the same key to retry safely."
    ),
]


class Idempotency:
    """One request's key, its caller, what it does and a fingerprint of its content."""

    def __init__(self, key: str | None, actor_id: str, operation: str, *content: Any) -> None:
        self._key = key
        self._actor_id = actor_id
        self._operation = operation
        self._fingerprint = hashlib.sha256(orjson.dumps(content, default=str)).hexdigest()

    def replay(self, database: Database) -> Mapping[str, Any] | None:
        """Return the stored answer; raises Invalid (IDEMPOTENCY_KEY_REUSED) when the key meant something else."""
        if self._key is None:
            return None
        with database.transaction() as tx:
            row = tx.one(
                "SELECT operation, fingerprint, response FROM idempotency_keys WHERE actor_id = %s AND key = %s",
                (self._actor_id, self._key),
            )
        if row is None:
            return None
        if (row["operation"], row["fingerprint"]) != (self._operation, self._fingerprint):
            raise Invalid("IDEMPOTENCY_KEY_REUSED", "this Idempotency-Key was used for another request")
        response: Mapping[str, Any] = row["response"]
        return response

    def store(self, tx: Tx, response: Mapping[str, Any], status: int = 200) -> None:
        """Keep the answer; raises StateConflict (REQUEST_IN_PROGRESS) when a twin of the request got there first."""
        if self._key is None:
            return
        try:
            with tx.savepoint():
                tx.run(
                    "INSERT INTO idempotency_keys (actor_id, key, operation, fingerprint, status, response)"
                    " VALUES (%s, %s, %s, %s, %s, %s)",
                    (
                        self._actor_id,
                        self._key,
                        self._operation,
                        self._fingerprint,
                        status,
                        orjson.dumps(response, default=str).decode(),
                    ),
                )
        except UniqueViolation:
            raise StateConflict("REQUEST_IN_PROGRESS", "the same request is being answered; ask again") from None
