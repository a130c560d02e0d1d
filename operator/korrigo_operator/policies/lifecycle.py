"""Which stuck things have an object, and when an object ends: bounded in number, and each leaves some time after."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from korrigo_operator.policies.facts import Found, Limits

# What a person who comes back from a call still finds.
KEEP_RESOLVED = timedelta(minutes=10)
KEEP_INTERVENTIONS = timedelta(hours=24)
MOST_INTERVENTIONS = 1000
KEEP_INCIDENTS = timedelta(days=30)
MOST_INCIDENTS = 100
# An alert that ended longer ago gets no incident any more.
LATE = timedelta(hours=1)

KEEP = "Keep"
RESOLVE = "Resolve"
DELETE = "Delete"

# What a StuckCopy is named by: stage and id.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """An object as it is: what it is about, which room told it and since when, when it was resolved."""

    key: Key
    room: str
    since: datetime
    resolved_at: datetime | None = None
    is_paused: bool = False


def chosen(
    found: Sequence[Found], known: Collection[Key], limits: Limits, now: datetime, taken: int = 0
) -> list[Found]:
    """Return what has an object: what has one already, then the oldest, never more than the policy's most.

    `taken` places of those are for others.
    """
    old_enough = [
        item
        for item in found
        if (item.stage, item.id) in known
        or now - item.since >= timedelta(seconds=limits.stuck_after_seconds.get(item.stage, 60.0))
    ]
    # One object for one subject and stage, though two rooms may tell it.
    unique: dict[Key, Found] = {}
    for item in sorted(old_enough, key=lambda one: (one.since, one.key)):
        unique.setdefault((item.stage, item.id), item)
    ordered = sorted(unique.values(), key=lambda one: ((one.stage, one.id) not in known, one.since, one.key))
    return ordered[: max(0, limits.most - taken)]


def fate(known: Known, listed: Collection[Key], complete_until: datetime | None, is_heard: bool, now: datetime) -> str:
    """Tell what becomes of an object that is not among the chosen.

    `is_heard`: its room answered. `complete_until`: when the room told only the oldest, since when the last of them is
    stuck: whether something younger still is, nobody knows.
    """
    if known.resolved_at is not None:
        return DELETE if now - known.resolved_at >= KEEP_RESOLVED else KEEP
    if not is_heard:
        return KEEP
    if known.key in listed:
        # Still stuck, but beyond the most: the objects of older ones come first.
        return DELETE
    if complete_until is not None and known.since >= complete_until:
        return KEEP
    return RESOLVE


def bounded(rest: Mapping[str, tuple[Known, str]], places: int) -> dict[str, str]:
    """Return what becomes of the objects that are not among the chosen, when there is place for so many of them.

    `rest` by name, with the fate of each alone. Those that a person paused stay before what nobody knows about now, the
    oldest of it first; of what is no longer stuck the last stay.
    """

    def rank(name: str) -> tuple[int, float, str]:
        known, fate_ = rest[name]
        if known.resolved_at is not None:
            return 3, -known.resolved_at.timestamp(), name
        if fate_ == RESOLVE:
            return 2, known.since.timestamp(), name
        return 0 if known.is_paused else 1, known.since.timestamp(), name

    staying = sorted((name for name in rest if rest[name][1] != DELETE), key=rank)
    return {name: rest[name][1] for name in rest} | dict.fromkeys(staying[max(0, places) :], DELETE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An incident that has no object yet: how bad it is (P0 to P3), when it began, and when it ended."""

    priority: str
    started_at: datetime
    ended_at: datetime | None = None


def incidents(known: Mapping[str, datetime | None], new: Mapping[str, Wanted]) -> tuple[list[str], list[str]]:
    """Return the names of new incidents that get an object, and of known ones that go for them.

    `known` by name, with when each ended. What fires comes before what ended, the worst and longest first; of what
    ended the last stay. So whatever went does not come back for another one to go.
    """
    firing = [name for name, ended_at in known.items() if ended_at is None]
    urgent = sorted(
        (name for name, one in new.items() if one.ended_at is None),
        key=lambda name: (new[name].priority, new[name].started_at, name),
    )
    ended = {name: at for name, at in known.items() if at is not None}
    ended |= {name: one.ended_at for name, one in new.items() if one.ended_at is not None}
    last_first = sorted(ended, key=lambda name: (ended[name], name), reverse=True)
    kept = set([*firing, *urgent, *last_first][:MOST_INCIDENTS])
    made = [*urgent, *(name for name in last_first if name in new)]
    gone = [name for name in last_first if name in known and name not in kept]
    return [name for name in made if name in kept], gone
