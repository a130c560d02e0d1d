"""ETag and If-Match: nobody overwrites what he has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Header

from korrigo_kit.errors import Stale

IfMatch = Annotated[str | None, Header(alias="If-Match", description="ETag of the version that the change builds on.")]


def etag(version: int | str) -> str:
    """Write a version as a strong ETag."""
    return f'"{version}"'


def require_match(if_match: str | None, version: int | str, current: Mapping[str, Any] | None = None) -> None:
    """Raise Stale: 428 without If-Match, 412 VERSION_MISMATCH with the current document; `*` matches anything."""
    if if_match is None:
        raise Stale("IF_MATCH_REQUIRED", "send If-Match with the ETag you have seen", status=428)
    offered = {part.strip().removeprefix("W/") for part in if_match.split(",")}
    if "*" in offered or etag(version) in offered:
        return
    raise Stale("VERSION_MISMATCH", "somebody changed it meanwhile", current=dict(current or {}), version=version)
