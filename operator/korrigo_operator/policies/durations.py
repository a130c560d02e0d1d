"""Durations as Kubernetes writes them: 30s, 10m, 1h30m."""

from __future__ import annotations

import re

_PART = re.compile(r"([0-9]+)(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Return a duration in seconds; raises ValueError for anything else."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration")
    return float(sum(int(number) * _SECONDS[unit] for number, unit in parts))
