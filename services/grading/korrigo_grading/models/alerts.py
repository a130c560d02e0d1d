"""Groups of alerts as Alertmanager told them, one row per episode: from the first that fired until none does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from korrigo_kit.db import Tx
from korrigo_kit.ids import new_id

# An episode keeps so many alerts; what goes beyond is counted (a flood must not fill the disk).
MOST_ALERTS = 1000


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: the same fingerprint that fires anew is another one. `ended_at` None = it fires."""

    fingerprint: str
    started_at: datetime
    ended_at: datetime | None
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def key(self) -> tuple[str, datetime]:
        """What tells it from every other of its group."""
        return self.fingerprint, self.started_at


@dataclass(frozen=True, slots=True)
class Group:
    """One episode of a group; `ended_at` None = it fires. `left_out` alerts were counted only."""

    id: str
    group_key: str
    labels: Mapping[str, str]
    started_at: datetime
    ended_at: datetime | None
    heard_at: datetime
    left_out: int
    alerts: tuple[Alert, ...] = field(default=())


_COLUMNS = "id::text AS id, group_key, labels, started_at, ended_at, heard_at, left_out"


def hold(tx: Tx, group_key: str) -> None:
    """Let the notifications of one group follow each other until the commit."""
    tx.run("SELECT pg_advisory_xact_lock(hashtextextended(%s, 2))", (group_key,))


def episode_of(tx: Tx, group_key: str, keys: Sequence[tuple[str, datetime]]) -> str | None:
    """Return the episode that one of these alerts belongs to, else the one that still fires, else None."""
    row = tx.one(
        "SELECT g.id::text AS id FROM alert_groups g WHERE g.group_key = %(key)s AND (g.ended_at IS NULL OR EXISTS"
        " (SELECT 1 FROM alerts a WHERE a.group_id = g.id AND (a.fingerprint, a.started_at) IN"
        "   (SELECT * FROM unnest(%(prints)s::text[], %(starts)s::timestamptz[]))))"
        " ORDER BY g.ended_at IS NOT NULL, g.started_at DESC LIMIT 1",
        {"key": group_key, "prints": [key[0] for key in keys], "starts": [key[1] for key in keys]},
    )
    return row["id"] if row else None


def open_episode(tx: Tx, group_key: str, labels: Mapping[str, str], started_at: datetime) -> str:
    """Begin an episode; returns its id."""
    group_id = new_id()
    tx.run(
        "INSERT INTO alert_groups (id, group_key, labels, started_at) VALUES (%s, %s, %s, %s)",
        (group_id, group_key, json.dumps(dict(labels)), started_at),
    )
    return group_id


def write(tx: Tx, group_id: str, alert: Alert) -> bool:
    """Write an alert, or its end; False when that was known. What has ended does not fire again."""
    row = tx.one(
        "INSERT INTO alerts AS a (group_id, fingerprint, started_at, ended_at, labels, annotations, end_heard_at)"
        " VALUES (%(group)s, %(print)s, %(start)s, %(end)s, %(labels)s, %(annotations)s,"
        "   CASE WHEN %(end)s::timestamptz IS NOT NULL THEN clock_timestamp() END)"
        " ON CONFLICT (group_id, fingerprint, started_at) DO UPDATE"
        " SET ended_at = excluded.ended_at, end_heard_at = excluded.end_heard_at"
        " WHERE a.ended_at IS NULL AND excluded.ended_at IS NOT NULL RETURNING 1 AS written",
        {
            "group": group_id,
            "print": alert.fingerprint,
            "start": alert.started_at,
            "end": alert.ended_at,
            "labels": json.dumps(dict(alert.labels)),
            "annotations": json.dumps(dict(alert.annotations)),
        },
    )
    return row is not None


def end_earlier(tx: Tx, group_id: str) -> None:
    """End every alert that was followed by the same one: it cannot have fired on when that began.

    Alertmanager tells an alert that ends and comes back between two notifications as one, and its end only under
    the later beginning.
    """
    tx.run(
        "UPDATE alerts a SET ended_at = l.next_at, end_heard_at = clock_timestamp() FROM ("
        "   SELECT fingerprint, started_at, lead(started_at) OVER (PARTITION BY fingerprint ORDER BY started_at)"
        "     AS next_at FROM alerts WHERE group_id = %(id)s) l"
        " WHERE a.group_id = %(id)s AND a.fingerprint = l.fingerprint AND a.started_at = l.started_at"
        " AND a.ended_at IS NULL AND l.next_at IS NOT NULL",
        {"id": group_id},
    )


def known(tx: Tx, group_id: str) -> set[tuple[str, datetime]]:
    """Return the alerts of an episode."""
    rows = tx.all("SELECT fingerprint, started_at FROM alerts WHERE group_id = %s", (group_id,))
    return {(row["fingerprint"], row["started_at"]) for row in rows}


def settle(tx: Tx, group_id: str, left_out: int) -> None:
    """Note that the group was heard, from when to when it lasts, and how much was left out at most."""
    tx.run(
        "UPDATE alert_groups g SET heard_at = clock_timestamp(), left_out = greatest(g.left_out, %(left_out)s),"
        " started_at = least(g.started_at, s.first), ended_at = CASE WHEN s.firing = 0 THEN s.last END"
        " FROM (SELECT min(started_at) AS first, max(ended_at) AS last, count(*) FILTER (WHERE ended_at IS NULL)"
        "   AS firing FROM alerts WHERE group_id = %(id)s) s WHERE g.id = %(id)s",
        {"id": group_id, "left_out": left_out},
    )


def page(tx: Tx, *, is_firing: bool | None, after: tuple[str, str] | None, limit: int) -> list[Group]:
    """List episodes with their alerts, newest first, from after one on."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM alert_groups WHERE (%(firing)s::boolean IS NULL OR (ended_at IS NULL) = %(firing)s)"
        " AND (%(at)s::timestamptz IS NULL OR (started_at, id) < (%(at)s::timestamptz, %(id)s::uuid))"
        " ORDER BY started_at DESC, id DESC LIMIT %(limit)s",
        {
            "firing": is_firing,
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    return _with_alerts(tx, rows)


def find(tx: Tx, group_id: str) -> Group | None:
    """Read one episode with its alerts."""
    found = _with_alerts(tx, tx.all(f"SELECT {_COLUMNS} FROM alert_groups WHERE id = %s", (group_id,)))
    return found[0] if found else None


def named(tx: Tx, ids: Sequence[str]) -> list[Group]:
    """Read the episodes of these ids that are there, with their alerts, newest first."""
    sql = f"SELECT {_COLUMNS} FROM alert_groups WHERE id = ANY(%s::uuid[]) ORDER BY started_at DESC, id DESC"
    return _with_alerts(tx, tx.all(sql, (list(ids),)))


def newest_of(tx: Tx, alertname: str) -> Group | None:
    """Read the episode in which an alert of this name fires, else the newest in which it did."""
    return _first(
        tx,
        "EXISTS (SELECT 1 FROM alerts a WHERE a.group_id = alert_groups.id AND a.labels ->> 'alertname' = %s)",
        (alertname,),
    )


def newest_firing(tx: Tx) -> Group | None:
    """Read the episode that fires and began last."""
    return _first(tx, "ended_at IS NULL", ())


def _first(tx: Tx, condition: str, params: tuple[str, ...]) -> Group | None:
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM alert_groups WHERE {condition}"
        " ORDER BY ended_at IS NOT NULL, started_at DESC LIMIT 1",
        params,
    )
    found = _with_alerts(tx, rows)
    return found[0] if found else None


def _with_alerts(tx: Tx, rows: list[dict[str, Any]]) -> list[Group]:
    alerts: dict[str, list[Alert]] = {row["id"]: [] for row in rows}
    for row in tx.all(
        "SELECT group_id::text AS group_id, fingerprint, started_at, ended_at, labels, annotations FROM alerts"
        " WHERE group_id = ANY(%s::uuid[]) ORDER BY started_at, fingerprint",
        (list(alerts),),
    ):
        alerts[row.pop("group_id")].append(Alert(**row))
    return [Group(**row, alerts=tuple(alerts[row["id"]])) for row in rows]


def prune(tx: Tx, *, days: int, most: int) -> int:
    """Delete episodes that ended long ago, and the oldest beyond a number; returns how many."""
    return tx.run(
        "DELETE FROM alert_groups WHERE ended_at < clock_timestamp() - make_interval(days => %(days)s) OR id IN"
        " (SELECT id FROM alert_groups ORDER BY started_at DESC, id DESC OFFSET %(most)s)",
        {"days": days, "most": most},
    )
