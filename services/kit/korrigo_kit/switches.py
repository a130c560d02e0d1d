"""Switches of the whole installation: a few numbers that every room reads and only the front door turns.

`read_only` (1 = on) refuses changes over HTTP with 503 while reads, logins and the heartbeats of locks go on.
`tokens_from` (Unix seconds) refuses every session that began earlier; a restored database sets it, because the
sessions that began after its backup are unknown to it.

Each room has its own table, so that it needs no other room to know; `korrigo.commands.read_only` and a restore turn
all of them in one transaction. The request path asks a cache that reads at most twice a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from korrigo_kit.db import Database
from korrigo_kit.errors import Unavailable

READ_ONLY = "read_only"
TOKENS_FROM = "tokens_from"
# Turned here, in force everywhere within a second (issue 4, part 8).
CACHE_SECONDS = 0.5
# What a client waits before it tries again; a restore or an upgrade takes minutes, not hours.
RETRY_AFTER_SECONDS = 30
# A marker keeps his lock, whoever logs out is logged out, and alerts are heard, above all while an incident is looked
# into; logging in needs no token and is never asked here.
_ALWAYS = ("/api/logout", "/api/csrf", "/api/ops/alerts")
_HEARTBEAT = "/lock/heartbeat"


class Switches:
    """The switches of one room, as they were at most half a second ago."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._values: Mapping[str, int] = {}
        self._read_at = -1e9

    def value(self, name: str) -> int:
        """Return a switch's value, 0 when nobody has turned it."""
        with self._lock:
            if time.monotonic() - self._read_at > CACHE_SECONDS:
                with self._database.transaction() as tx:
                    self._values = {row["name"]: row["value"] for row in tx.all("SELECT name, value FROM switches")}
                self._read_at = time.monotonic()
            return self._values.get(name, 0)

    def require_writable(self, path: str) -> None:
        """Refuse a change (503 READ_ONLY) while the installation is read-only."""
        if path in _ALWAYS or path.endswith(_HEARTBEAT):
            return
        if self.value(READ_ONLY):
            raise Unavailable(
                "READ_ONLY",
                "the installation is read-only for maintenance; nothing was changed, try again",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
