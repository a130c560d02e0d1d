"""One incident as a value, and the lines of its timeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from korrigo_kit.incidents import levels, words

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a timeline; `kind` is alert, resolved, failure, act, command or note.

    `times` is how often it happened, the last one at `until` (ISO in UTC) when that is more than once.
    """

    at: str
    kind: str
    text: str
    times: int = 1
    until: str | None = None


@dataclass
class Incident:
    """An incident; times are ISO in UTC, None = not yet."""

    id: str
    title: str
    priority: str
    severity: str
    created_at: str
    started_at: str
    ended_at: str | None = None
    closed_at: str | None = None
    group_id: str | None = None
    alertname: str | None = None
    scenario: str | None = None
    runbook_url: str | None = None
    # The language of its report, one of words.LANGUAGES.
    language: str = words.DEFAULT
    # What a person wrote, and what the product saw: copies that stand still, by "stage reason".
    impact: str = ""
    stuck_copies: dict[str, int] = field(default_factory=dict)
    cause: str = ""
    actions: list[str] = field(default_factory=list)
    lessons: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    timeline: list[Entry] = field(default_factory=list)
    # What could not be asked when it was last looked at.
    unasked: list[str] = field(default_factory=list)
    report_sha256: str = ""

    @property
    def is_open(self) -> bool:
        """Tell whether nobody has closed it."""
        return self.closed_at is None

    def lasted_seconds(self, now: datetime) -> float:
        """Tell how long it has lasted, or lasted."""
        ended = self.ended_at or self.closed_at
        end = datetime.fromisoformat(ended) if ended else now
        return max(0.0, (end - datetime.fromisoformat(self.started_at)).total_seconds())

    def level(self, now: datetime) -> int:
        """Return who has to know by now, 1 to 4."""
        return levels.level(self.priority, self.lasted_seconds(now))

    def fields(self, now: datetime) -> dict[str, Any]:
        """Write it as one JSON object, with what follows from the time."""
        return {
            **asdict(self),
            "format": FORMAT,
            "status": "open" if self.is_open else "closed",
            "level": self.level(now),
            "lasted_seconds": round(self.lasted_seconds(now)),
        }

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Incident:
        """Read what `fields` wrote, by this release or another; raises TypeError or KeyError when it is no incident."""
        known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        known["timeline"] = [Entry(**entry) for entry in known.get("timeline", [])]
        return cls(**known)
