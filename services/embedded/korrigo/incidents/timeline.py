"""What alerts, the audit trail and the commands of this machine tell of the time of an incident."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from korrigo.home import Home
from korrigo.incidents import journal
from korrigo_kit.errors import KorrigoError
from korrigo_kit.incidents.record import Entry

if TYPE_CHECKING:
    from korrigo.operating import Operation
    from korrigo_grading.models.alerts import Group

# What was wrong before the alert fired, and what was done after it ended.
BEFORE = timedelta(minutes=15)
AFTER = timedelta(minutes=30)
# A report of more lines is read by nobody; the trail and the logs hold the rest.
MOST_LINES = 300
_ALONE = 3


@dataclass
class Seen:
    """The lines found, the group as it is now, and what could not be asked."""

    entries: list[Entry] = field(default_factory=list)
    group: Group | None = None
    stuck_copies: dict[str, int] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)


def look(home: Home, at: Operation | None, group_id: str | None, start: datetime, end: datetime) -> Seen:
    """Collect everything from before the start until after the end; without `at` the rooms are not asked."""
    seen = Seen()
    since, until = start - BEFORE, end + AFTER
    if at is None:
        seen.unasked += ["alerts", "audit trail"]
    else:
        _ask(seen, "alerts", lambda: _alerts(at, seen, group_id, since, until))
        _ask(seen, "audit trail", lambda: _acts(at, since, until))
        _ask(seen, "impact", lambda: _impact(at, seen))
    seen.entries += [
        Entry(_iso(one.at), "command", f"{one.words} (exit {one.code}, {one.seconds:.0f} s)")
        for one in journal.between(home, since, until)
    ]
    seen.entries = sorted(seen.entries, key=lambda entry: entry.at)[:MOST_LINES]
    return seen


def _ask(seen: Seen, what: str, ask: Any) -> None:
    try:
        seen.entries += ask()
    except KorrigoError as error:
        seen.unasked.append(f"{what} ({error.reason})")


def _alerts(at: Operation, seen: Seen, group_id: str | None, since: datetime, until: datetime) -> Iterable[Entry]:
    from korrigo_grading.flows import alerting

    found: list[Entry] = []
    grading = at["grading"]
    if group_id is not None:
        seen.group = alerting.choose(grading, group_id=group_id)
    for group in alerting.since(grading, since):
        if group.started_at <= until:
            found += _of_group(group)
    return found


def _of_group(group: Group) -> Iterator[Entry]:
    begun: dict[str, list[datetime]] = {}
    summaries = {}
    for alert in group.alerts:
        name = alert.labels.get("alertname", "?")
        begun.setdefault(name, []).append(alert.started_at)
        summaries[name] = alert.annotations.get("summary", "")
    for name, moments in begun.items():
        yield Entry(
            _iso(min(moments)), "alert", f"{name}: {summaries[name]}".strip(": "), len(moments), _last(moments)
        )
        if group.ended_at is not None:
            yield Entry(_iso(group.ended_at), "resolved", name)


def _acts(at: Operation, since: datetime, until: datetime) -> Iterable[Entry]:
    from korrigo_audit.flows import listing

    gathered: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    entries: list[Entry] = []
    for record in listing.notable(at["audit"].db, since, until):
        gathered.setdefault((record["action"], _why(record["metadata"])), []).append(record)
    for (action, why), records in gathered.items():
        kind = "failure" if records[0]["metadata"].get("success") is False else "act"
        text = f"{action} ({why})" if why else action
        if len(records) <= _ALONE:
            entries += [
                Entry(_iso(one["happened_at"]), kind, f"{text} {one['subject_type']} {one['subject_id']}")
                for one in records
            ]
            continue
        moments = [one["happened_at"] for one in records]
        entries.append(Entry(_iso(min(moments)), kind, text, len(moments), _last(moments)))
    return entries


def _why(metadata: Mapping[str, Any]) -> str:
    named = [metadata.get(name) for name in ("error", "error_type", "reason", "action", "state")]
    told = [str(value) for value in named if isinstance(value, str)]
    if isinstance(metadata.get("is_on"), bool):
        told.append("on" if metadata["is_on"] else "off")
    return ", ".join(told)[:120]


def _impact(at: Operation, seen: Seen) -> Iterable[Entry]:
    """Tell how much stands still now; nothing is lost by standing still."""
    from korrigo_kit.stuck import Stuck

    found: list[Stuck] = [item for room in at.rooms.values() for item in room.room.stuck(room)]
    for item in found:
        name = f"{item.stage} {item.reason}"
        seen.stuck_copies[name] = seen.stuck_copies.get(name, 0) + item.copies
    seen.stuck_copies = {name: count for name, count in seen.stuck_copies.items() if count}
    return ()


def _last(moments: list[datetime]) -> str | None:
    return _iso(max(moments)) if len(moments) > 1 else None


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
