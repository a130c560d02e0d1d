"""What an incident begins with: a group of alerts, as grading tells it. How it is told is korrigo_kit.incidents'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AlertTold:
    """One alert of a group; `ended_at` None = it fires."""

    started_at: datetime
    ended_at: datetime | None
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AlertEpisode:
    """A group of alerts from the first that fired until none does; `ended_at` None = one fires."""

    id: str
    started_at: datetime
    ended_at: datetime | None
    alerts: tuple[AlertTold, ...]
