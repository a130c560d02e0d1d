"""When a backup is due, asked by the supervisor once a minute; standard library only, because it stays resident.

Every night at the given hour; and at any time, the start included, when the last good one is older than a day.
Before the first one the age counts from the installation, so that trying the product out makes no backup.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

MANUAL, NIGHTLY = "manual", "nightly"
BEFORE_MIGRATION, BEFORE_RESTORE = "before-migration", "before-restore"
KINDS = (MANUAL, NIGHTLY, BEFORE_MIGRATION, BEFORE_RESTORE)
DAY_SECONDS = 86_400
_NAME = re.compile(rf"(\d{{8}}T\d{{6}}Z)-({'|'.join(KINDS)})(-\d+)?")
_STAMP = "%Y%m%dT%H%M%SZ"
_LOOK_SECONDS = 60.0


def name_of(kind: str, at: datetime) -> str:
    """Name a backup by the moment of its snapshot and what it was made for."""
    return f"{at.astimezone(UTC).strftime(_STAMP)}-{kind}"


def parse(name: str) -> tuple[datetime, str] | None:
    """Read moment and kind from a name; None when it is no backup's."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return datetime.strptime(found[1], _STAMP).replace(tzinfo=UTC), found[2]


def names(directory: Path) -> Iterator[str]:
    """Yield the names of the good backups in a directory, oldest first; only a good one has its final name."""
    try:
        found = sorted(path.name for path in directory.iterdir() if parse(path.name) is not None)
    except OSError:
        return
    yield from found


class Schedule:
    """Tells whether it is time; `hour` is of the machine's own clock."""

    def __init__(
        self, directory: Path, installed: Path, hour: int, *, now: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._installed = installed
        self._hour = hour
        self._now = now
        self._started = now()
        self._looked = -1e9

    def is_due(self) -> bool:
        """Look once a minute; raises nothing."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        return self.is_time()

    def is_time(self) -> bool:
        """Decide now."""
        now = self._now()
        last = self._last()
        if now - last >= DAY_SECONDS:
            return True
        # A night that passed while the machine was off is made up for by the rule of the day, not here.
        return last < self._night(now) and self._started <= self._night(now)

    def _last(self) -> float:
        good = [parse(name) for name in names(self._directory)]
        moments = [found[0].timestamp() for found in good if found is not None]
        if moments:
            return max(moments)
        try:
            return self._installed.stat().st_mtime
        except OSError:
            return self._started

    def _night(self, now: float) -> float:
        local = datetime.fromtimestamp(now).astimezone()
        night = local.replace(hour=self._hour, minute=0, second=0, microsecond=0)
        return (night if night <= local else night - timedelta(days=1)).timestamp()
