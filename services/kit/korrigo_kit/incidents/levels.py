"""How far an incident has been escalated, by its priority and the time that it has lasted.

The figures are those of charts/korrigo/files/escalation.yaml, which the rules and Alertmanager's routes follow; a
test holds them together.
"""

from __future__ import annotations

# Priority -> level -> seconds since the alert fired until the next level has to know.
CLOCKS: dict[str, dict[int, int]] = {
    "P0": {1: 300, 2: 900, 3: 1800, 4: 3600},
    "P1": {2: 7200},
    "P2": {2: 86400},
    "P3": {},
}
PRIORITIES = tuple(CLOCKS)
_SUPPORT = 2
_HIGHEST = 4


def level(priority: str, seconds: float) -> int:
    """Return the level, 1 to 4, of an incident that has lasted so long; what has no clock stays with support."""
    clock = CLOCKS.get(priority, {})
    for number, until in sorted(clock.items()):
        if seconds < until:
            return number
    return min(_HIGHEST, max(clock, default=_SUPPORT - 1) + 1)
