"""Incident objects: one for each episode of a group of alerts, escalated by the clock, with its report.

Alertmanager tells grading, grading tells us; what people add (cause, actions, lessons) is theirs and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from korrigo_kit.incidents import levels, report, words
from korrigo_kit.incidents.record import Entry, Incident
from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.kinds import IncidentSpec, IncidentStatus
from korrigo_operator.policies import lifecycle
from korrigo_operator.policies.episode import AlertEpisode
from korrigo_operator.sweeping import objects

log = logging.getLogger("korrigo.operator")

PLURAL = "incidents"
# What was done before the alert fired, and after it ended, belongs to the story.
BEFORE, AFTER = timedelta(minutes=15), timedelta(minutes=30)
_MOST_LINES = 100
_MOST_REPORT = 60_000


def name_of(episode: AlertEpisode) -> str:
    """Return the name of an episode's object: when it began, and which it is."""
    return f"inc-{episode.started_at.astimezone(UTC):%Y-%m-%d-%H-%M}-{episode.id[-12:]}"


@dataclass(frozen=True, slots=True)
class Told:
    """What incidents are written from: episodes, those asked for that grading does not know, acts, and the impact."""

    episodes: Sequence[AlertEpisode]
    unknown: Collection[str] = ()
    acts: Sequence[Document] = ()
    impact: str = ""


def firing(items: Sequence[Document]) -> list[str]:
    """Return the episodes of the Incidents that have not ended: grading has to tell of them, however old they are."""
    return [item["spec"]["groupId"] for item in items if _ended(item) is None]


def reconcile(cluster: Cluster, found: Sequence[Document], told: Told, now: datetime) -> int:
    """Make, update and drop Incidents; returns how many objects could not be written."""
    items = {item["metadata"]["name"]: item for item in found}
    episodes = {name_of(episode): episode for episode in told.episodes}
    new = {
        name: lifecycle.Wanted(_spec(episode).priority, episode.started_at, episode.ended_at)
        for name, episode in episodes.items()
        if name not in items and not (episode.ended_at is not None and now - episode.ended_at > lifecycle.LATE)
    }
    wanted, surplus = lifecycle.incidents({name: _ended(item) for name, item in items.items()}, new)
    failed = objects.each([items.pop(name) for name in surplus], "Incident", lambda item: _drop(cluster, item))
    for name in wanted:
        made = cluster.create(PLURAL, "Incident", {"name": name}, _spec(episodes[name]).document())
        if made is not None:
            items[name] = made
            cluster.tell(made, "Incident", made["spec"]["title"], is_warning=True)
    left_out = [name for name, one in new.items() if one.ended_at is None and name not in wanted]
    if left_out:
        log.warning("%s alert groups fire without an Incident: there are too many", len(left_out))
    return failed + objects.each(
        list(items.values()),
        "Incident",
        lambda item: _one(cluster, item, episodes.get(item["metadata"]["name"]), told, now),
    )


def _ended(item: Document) -> datetime | None:
    ended = (item.get("status") or {}).get("endTime")
    return datetime.fromisoformat(ended) if ended else None


def _drop(cluster: Cluster, item: Document) -> None:
    cluster.delete(PLURAL, item["metadata"]["name"], item["metadata"]["uid"])


def _one(cluster: Cluster, item: Document, episode: AlertEpisode | None, told: Told, now: datetime) -> None:
    old, ended_at = item.get("status") or {}, _ended(item)
    if ended_at is not None and now - ended_at > lifecycle.KEEP_INCIDENTS:
        _drop(cluster, item)
        return
    if objects.is_paused(item):
        return
    spec = IncidentSpec.model_validate(item["spec"])
    if episode is not None:
        entries = list(_alerts(episode))
    elif ended_at is None and spec.group_id in told.unknown:
        episode = AlertEpisode(spec.group_id, spec.start_time, ended_at=now, alerts=())
        entries = [*_remembered(old), Entry(_iso(now), "note", "closed: grading does not know these alerts any more")]
    else:
        return
    status = _status(item["metadata"]["name"], spec, old, episode, entries, told, now)
    if old and old.get("level", 1) < status.level:
        cluster.tell(item, "Escalated", f"level {status.level}: {status.who}", is_warning=True)
    if old.get("phase") == "Firing" and status.phase == "Resolved":
        cluster.tell(item, "Resolved", f"after {status.duration_seconds} s")
    objects.write(cluster, PLURAL, item, status=status)


def _remembered(old: Document) -> list[Entry]:
    """Return what the object itself says of its alerts, when nobody else does any more."""
    lines = [line for line in old.get("timeline", ()) if line["kind"] in ("alert", "resolved")]
    return [Entry(_iso(datetime.fromisoformat(line["time"])), line["kind"], line["text"]) for line in lines]


def _spec(episode: AlertEpisode) -> IncidentSpec:
    first = episode.alerts[0]
    priorities = sorted(found.labels.get("priority", "P3") for found in episode.alerts)
    alertname, summary = first.labels.get("alertname", "Alert"), first.annotations.get("summary", "")
    severities = {found.labels.get("severity") for found in episode.alerts}
    return IncidentSpec.model_validate(
        {
            "groupId": episode.id,
            "title": (f"{alertname}: {summary}" if summary else alertname)[:500],
            "alertname": alertname[:100],
            # An incident is as bad as the worst of its alerts.
            "priority": next((found for found in priorities if found in levels.PRIORITIES), "P2"),
            "severity": "critical" if "critical" in severities else "warning",
            "scenario": first.labels.get("scenario", "")[:100] or None,
            "runbookURL": first.annotations.get("runbook_url", "")[:500] or None,
            "startTime": episode.started_at,
        }
    )


def _status(
    name: str,
    spec: IncidentSpec,
    old: Document,
    episode: AlertEpisode,
    entries: Sequence[Entry],
    told: Told,
    now: datetime,
) -> IncidentStatus:
    acts = [item for item in told.acts if _belongs(item, episode, now)]
    timeline = sorted([*entries, *_acts(acts)], key=lambda entry: entry.at)[:_MOST_LINES]
    is_firing = episode.ended_at is None
    impact = told.impact if is_firing and told.impact else old.get("impact", "")
    incident = Incident(
        id=name, title=spec.title, priority=spec.priority, severity=spec.severity, created_at=_iso(episode.started_at),
        started_at=_iso(episode.started_at), ended_at=_iso(episode.ended_at) if episode.ended_at else None,
        group_id=episode.id, alertname=spec.alertname, scenario=spec.scenario, runbook_url=spec.runbook_url,
        impact=impact, cause=spec.cause or "", actions=spec.actions, lessons=spec.lessons, timeline=timeline,
    )  # fmt: skip
    level = incident.level(now)
    seconds = round(incident.lasted_seconds(now))
    who = words.LANGUAGES[words.DEFAULT].levels[level]
    text = f"level {level}: {who}"
    return IncidentStatus.model_validate(
        {
            "phase": "Firing" if is_firing else "Resolved",
            "level": level,
            "who": who,
            "endTime": episode.ended_at,
            # To the minute while it fires: a status that changes with every sweep is a write with every sweep.
            "durationSeconds": seconds - seconds % 60 if is_firing else seconds,
            "impact": impact,
            "interventions": [item["metadata"]["name"] for item in acts][:50],
            "timeline": [{"time": entry.at, "kind": entry.kind, "text": entry.text[:500]} for entry in timeline],
            "report": report.markdown(incident, now)[:_MOST_REPORT],
            "conditions": [
                objects.condition(old, "Firing", is_firing, "Firing" if is_firing else "Resolved", spec.title, now),
                objects.condition(old, "Escalated", level > 1, f"Level{'ABCD'[level - 1]}", text, now),
            ],
        }
    )


def _belongs(item: Document, episode: AlertEpisode, now: datetime) -> bool:
    created = datetime.fromisoformat(item["metadata"]["creationTimestamp"])
    return episode.started_at - BEFORE <= created <= (episode.ended_at or now) + AFTER


def _alerts(episode: AlertEpisode) -> Iterator[Entry]:
    for alert in episode.alerts:
        name = alert.labels.get("alertname", "?")
        yield Entry(_iso(alert.started_at), "alert", f"{name}: {alert.annotations.get('summary', '')}".rstrip(": "))
        if alert.ended_at is not None:
            yield Entry(_iso(alert.ended_at), "resolved", name)


def _acts(interventions: Sequence[Document]) -> Iterator[Entry]:
    for item in interventions:
        status, target = item.get("status") or {}, item["spec"]["target"]
        if status.get("startTime") is not None:
            what = "/".join(part for part in (target["kind"], target.get("id")) if part)
            text = f"{item['spec']['action']} {what}: {status.get('phase')}, {status.get('message', '')}"
            yield Entry(_iso(datetime.fromisoformat(status["startTime"])), "act", text)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
