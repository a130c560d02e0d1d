"""What every management command shares: who acts, on which rooms, and how the answer is told.

A command asks a flow of the room that owns the data; it writes no row itself. The acting account is the system
account, or the admin that `--as` names, and stands in every event that the flow writes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from korrigo import installation
from korrigo_kit.errors import Forbidden, Invalid

if TYPE_CHECKING:
    from korrigo_kit.auth import Principal
    from korrigo_kit.room import Runtime

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="change nothing, tell what would be done")]
ActAs = Annotated[str | None, typer.Option("--as", help="admin in whose name it is done; default: the system account")]
EXIT_FOUND_PROBLEMS = 9
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOW_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Operation:
    """One command at work: its rooms and who acts."""

    rooms: Mapping[str, Runtime]
    principal: Principal

    def __getitem__(self, room: str) -> Runtime:
        return self.rooms[room]

    @property
    def actor_id(self) -> str:
        return self.principal.user_id


@contextmanager
def operation(*names: str, act_as: str | None = None) -> Iterator[Operation]:
    """Give the runtimes of these rooms for one command, under a request id of its own.

    Raises Unavailable (NOT_SET_UP), NotFound (USER_NOT_FOUND) and Forbidden (NOT_AN_ADMIN) for `act_as`.
    """
    from korrigo import rooms
    from korrigo_kit import context
    from korrigo_kit.room import Process

    installation.attach()
    needed = dict.fromkeys([*names, *(["grading"] if act_as else [])])
    process = Process.build(rooms.rooms(list(needed)), rooms.load_settings())
    try:
        with context.bind(request_id=context.accept_request_id(None)):
            yield Operation(process.runtimes, _principal(process.runtimes, act_as))
    finally:
        process.close()


def _principal(runtimes: Mapping[str, Runtime], act_as: str | None) -> Principal:
    from korrigo_kit.auth import Principal
    from korrigo_kit.outbox import SYSTEM_ACTOR

    if act_as is None:
        return Principal(SYSTEM_ACTOR, "system", ("admin",))
    from korrigo_grading.flows import accounts

    account = accounts.by_name(runtimes["grading"], act_as)
    if not account.is_active or "admin" not in account.roles:
        raise Forbidden("NOT_AN_ADMIN", f"{account.username} is no admin who can log in")
    return Principal(account.id, account.username, account.roles)


def tell(as_json: bool, fields: Mapping[str, Any], *lines: str) -> None:
    """Print the answer: one JSON object, or lines for people."""
    if as_json:
        typer.echo(json.dumps(fields, default=_plain))
        return
    for line in lines:
        typer.echo(line)


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def seconds(text: str) -> float:
    """Read a span such as 30m, 24h or 7d; raises Invalid (INVALID_SPAN)."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise Invalid("INVALID_SPAN", f"a span is a number and s, m, h or d, such as 24h: {text}")
    return float(found[1]) * _UNITS[found[2]]


def moment(text: str) -> datetime:
    """Read a moment: a span before now, or an ISO date or time (UTC where it names no zone); raises Invalid."""
    if _SPAN.fullmatch(text.strip()):
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid("INVALID_MOMENT", f"neither a span such as 24h nor an ISO time: {text}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class Progress:
    """A line on standard error that shows how far long work is; silent where nobody watches."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._shown_at = 0.0

    def __call__(self, what: str, count: int) -> None:
        if self._is_shown and time.monotonic() - self._shown_at > _SHOW_SECONDS:
            sys.stderr.write(f"\r\033[K{what} {count}")
            sys.stderr.flush()
            self._shown_at = time.monotonic()

    def end(self) -> None:
        """Take the line away."""
        if self._is_shown and self._shown_at:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
