"""Range and If-None-Match of a download (RFC 9110 sections 13 and 14): one range, or the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.I)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes from `start` up to but not including `end`; outside when nothing of it exists."""

    start: int
    end: int
    is_outside: bool = False


def parse(header: str | None, size: int) -> Range | None:
    """Read a Range header for a content of `size` bytes; None = answer the whole.

    Several ranges and what is not understood are answered with the whole, as the RFC allows.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.group(1, 2) == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        length = min(int(last), size)
        return Range(size - length, size, is_outside=length == 0)
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return Range(start, end, is_outside=start >= size)


def is_listed(header: str | None, tag: str) -> bool:
    """Tell whether an If-None-Match header names this ETag."""
    if header is None:
        return False
    offered = {part.strip().removeprefix("W/") for part in header.split(",")}
    return "*" in offered or tag in offered
