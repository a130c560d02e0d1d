"""Alerts come in from Alertmanager and are kept as what an incident begins with (issue 4, part 7).

Started by `rest.alerts`; read by `korrigo incident` and, through `rpc`, by the operator. Alertmanager repeats what it
said, for days, and two of them may say it at once: an alert is its fingerprint and the moment it began, so that a
repeat changes nothing. It also goes on trying while we are down, so the end of an alert may be the first that is heard
of it.

Two kinds say nothing about the product and open no group: the watchdog and test alerts, which carry severity none or
the label `korrigo_test`. That they came is kept as heartbeats, `watchdog` and `alert-test`: the way from the rules to
here works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from korrigo_grading.models import alerts
from korrigo_grading.models.alerts import MOST_ALERTS, Alert, Group
from korrigo_kit.auth import Principal
from korrigo_kit.parts import beat
from korrigo_kit.room import Runtime

READERS = ("admin", "auditor")
TEST_LABEL = "korrigo_test"
WATCHDOG = "watchdog"
ALERT_TEST = "alert-test"
# A year and the weeks in which its last incidents are talked about (domain.md 1.22: marks and scans, one year).
KEEP_DAYS = 400
MOST_GROUPS = 10_000
# Longer names and texts are cut: an alert must not be lost because somebody wrote a long description.
_MOST_LABELS = 64
_NAME_LENGTH = 100
_TEXT_LENGTH = 1000
_PRINT_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Notification:
    """What Alertmanager said of one group; `left_out` alerts it did not send."""

    group_key: str
    labels: Mapping[str, str]
    alerts: Sequence[Alert]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a notification; `group_id` None = nothing in it is kept."""

    group_id: str | None
    recorded: int
    repeated: int
    ignored: int


def receive(rt: Runtime, caller: Principal, told: Notification) -> Heard:
    """Keep what is new in a notification; raises Forbidden for others than admins and auditors."""
    caller.require(*READERS)
    kept = [_bounded(alert) for alert in told.alerts if not _is_void(alert)]
    ignored = len(told.alerts) - len(kept)
    _note_signs(rt, told.alerts)
    if not kept:
        return Heard(None, 0, 0, ignored)
    group_key = told.group_key[:_TEXT_LENGTH]
    with rt.db.transaction(actor=caller.user_id, roles=caller.roles) as tx:
        alerts.hold(tx, group_key)
        group_id = alerts.episode_of(tx, group_key, [alert.key for alert in kept])
        if group_id is None:
            group_id = alerts.open_episode(
                tx, group_key, _cut(told.labels), min(alert.started_at for alert in kept)
            )
        known = alerts.known(tx, group_id)
        left_out = told.left_out
        recorded = 0
        for alert in kept:
            if alert.key not in known and len(known) >= MOST_ALERTS:
                left_out += 1
                continue
            known.add(alert.key)
            recorded += alerts.write(tx, group_id, alert)
        alerts.end_earlier(tx, group_id)
        alerts.settle(tx, group_id, left_out)
    return Heard(group_id, recorded, len(kept) - recorded, ignored)


def _is_void(alert: Alert) -> bool:
    return alert.labels.get("severity") == "none" or TEST_LABEL in alert.labels


def _note_signs(rt: Runtime, told: Sequence[Alert]) -> None:
    tests = [alert.labels[TEST_LABEL] for alert in told if TEST_LABEL in alert.labels]
    if tests:
        beat(rt, ALERT_TEST, id=tests[-1][:_NAME_LENGTH])
    if any(alert.labels.get("alertname") == "Watchdog" and _is_void(alert) for alert in told):
        beat(rt, WATCHDOG)


def _bounded(alert: Alert) -> Alert:
    ended_at = None if alert.ended_at is None else max(alert.ended_at, alert.started_at)
    return Alert(
        alert.fingerprint[:_PRINT_LENGTH], alert.started_at, ended_at, _cut(alert.labels), _cut(alert.annotations)
    )


def _cut(texts: Mapping[str, str]) -> dict[str, str]:
    return {name[:_NAME_LENGTH]: text[:_TEXT_LENGTH] for name, text in list(texts.items())[:_MOST_LABELS]}


def page(
    rt: Runtime, caller: Principal, *, is_firing: bool | None, after: tuple[str, str] | None, limit: int
) -> list[Group]:
    """List episodes, newest first; raises Forbidden."""
    caller.require(*READERS)
    with rt.db.transaction() as tx:
        return alerts.page(tx, is_firing=is_firing, after=after, limit=limit)


def choose(rt: Runtime, *, group_id: str | None = None, alertname: str | None = None) -> Group | None:
    """Find the episode that an incident begins with: the named one, else the newest that fires."""
    with rt.db.transaction() as tx:
        if group_id is not None:
            return alerts.find(tx, group_id)
        return alerts.newest_firing(tx) if alertname is None else alerts.newest_of(tx, alertname)


def since(rt: Runtime, start: datetime, limit: int = 200) -> list[Group]:
    """List the newest episodes that lasted beyond a moment."""
    with rt.db.transaction() as tx:
        found = alerts.page(tx, is_firing=None, after=None, limit=limit)
    return [group for group in found if group.ended_at is None or group.ended_at >= start]


def newest(rt: Runtime, limit: int, besides: Sequence[str] = ()) -> tuple[list[Group], list[str]]:
    """List the newest episodes with their alerts, those of `besides` after them, and the ids of it that are not there.

    For rooms and the operator, which are let in as such.
    """
    with rt.db.transaction() as tx:
        found = alerts.page(tx, is_firing=None, after=None, limit=limit)
        named = alerts.named(tx, besides) if besides else []
    listed, known = {group.id for group in found}, {group.id for group in named}
    return found + [group for group in named if group.id not in listed], [id_ for id_ in besides if id_ not in known]


def prune(rt: Runtime) -> None:
    """Delete what is older than anybody asks for."""
    with rt.db.transaction() as tx:
        alerts.prune(tx, days=KEEP_DAYS, most=MOST_GROUPS)
