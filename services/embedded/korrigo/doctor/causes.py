"""What a cause is: how it is found, by which evidence, what heals it. Filled in by the modules of the scenarios.

A certainty says what kind of evidence there is, so that causes of different kinds can be ranked:

    CERTAIN   a part was asked and does not answer; whatever else is wrong comes from that
    SEEN      the condition is there now
    LIKELY    traces that it left in rows or logs
    POSSIBLE  traces that something else could have left, or that are not fresh
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from korrigo.doctor.patient import Patient

CERTAIN = 1.0
SEEN = 0.9
LIKELY = 0.7
POSSIBLE = 0.5
# Longest list of examples in a line of evidence: enough to begin with at 03:12.
EXAMPLES = 3


class Blind(Exception):
    """What would have to be looked at does not answer; the message says what that is."""


@dataclass(frozen=True, slots=True)
class Found:
    """A cause that is there: how sure that is, by what, and the values for its remedies' placeholders."""

    certainty: float
    evidence: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remedy:
    """A command of this product or of the shell; `dry_run` shows what it would do. Placeholders are in braces."""

    command: str
    what: str
    dry_run: str | None = None
    # embedded (while `korrigo up` runs), stopped (while it does not), production; empty = always
    mode: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """A root cause of the playbooks; the first scenario is its home."""

    slug: str
    title: str
    scenarios: tuple[str, ...]
    find: Callable[[Patient], Found | None]
    remedies: tuple[Remedy, ...]
    runbook: str


@dataclass(frozen=True, slots=True)
class Named:
    """A cause as it is told."""

    cause: str
    title: str
    certainty: float
    evidence: Sequence[str]
    remedies: Sequence[Mapping[str, str | None]]
    runbook: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What came out for one scenario; the first cause is the best. `checked` tells of every cause what was seen."""

    scenario: str
    causes: Sequence[Named]
    checked: Sequence[Mapping[str, str]]

    @property
    def is_healthy(self) -> bool:
        return not self.causes

    def as_json(self) -> dict[str, Any]:
        """Write it as drills and scripts read it."""
        return {
            "scenario": self.scenario,
            "healthy": self.is_healthy,
            "causes": [asdict(cause) for cause in self.causes],
            "checked": [dict(item) for item in self.checked],
        }


def some(words: Sequence[object], most: int = EXAMPLES) -> str:
    """Name the first few of many."""
    shown = ", ".join(str(word) for word in words[:most])
    return shown + (f" and {len(words) - most} more" if len(words) > most else "")


def span(seconds: float) -> str:
    """Write a span of time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def size(count: float) -> str:
    """Write bytes for people."""
    return f"{count / (1 << 30):.1f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MB"
