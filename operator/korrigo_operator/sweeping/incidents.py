"""Incident objects: one for each episode of a group of alerts, escalated by the clock, with its report.

Alertmanager tells grading, grading tells us; what people add (cause, actions, lessons) is theirs and stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from korrigo_kit.incidents import levels, report, words
from korrigo_kit.incidents.record import Entry, Incident
from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.kinds import IncidentSpec, IncidentStatus
from korrigo_operator.policies import lifecycle
from korrigo_operator.policies.episode import AlertEpisode
from korrigo_operator.sweeping import objects

PLURAL = "incidents"
# What was done before the alert fired, and after it ended, belongs to the story.
BEFORE, AFTER = timedelta(minutes=15), timedelta(minutes=30)
_MOST_LINES = 100
_MOST_REPORT = 60_000


def name_of(episode: AlertEpisode) -> str:
    """Return the name of an episode's object: when it began, and which it is."""
    return f"inc-{episode.started_at.astimezone(UTC):%Y-%m-%d-%H-%M}-{episode.id[-12:]}"


def reconcile(
    cluster: Cluster, episodes: Sequence[AlertEpisode], interventions: Sequence[Document], impact: str, now: datetime
) -> int:
    """Make, update and drop Incidents; returns how many objects could not be written."""
    items = {item["metadata"]["name"]: item for item in cluster.list(PLURAL)}
    told = {name_of(episode): episode for episode in episodes}
    for name, episode in told.items():
        is_late = episode.ended_at is not None and now - episode.ended_at > lifecycle.LATE
        if name not in items and not is_late and len(items) < lifecycle.MOST_INCIDENTS:
            made = cluster.create(PLURAL, "Incident", {"name": name}, _spec(episode).document())
            if made is not None:
                items[name] = made
                cluster.tell(made, "Incident", made["spec"]["title"], is_warning=True)
    return objects.each(
        list(items.values()),
        "Incident",
        lambda item: _one(cluster, item, told.get(item["metadata"]["name"]), interventions, impact, now),
    )


def _one(
    cluster: Cluster,
    item: Document,
    episode: AlertEpisode | None,
    interventions: Sequence[Document],
    impact: str,
    now: datetime,
) -> None:
    old = item.get("status") or {}
    ended = old.get("endTime")
    if ended and now - datetime.fromisoformat(ended) > lifecycle.KEEP_INCIDENTS:
        cluster.delete(PLURAL, item["metadata"]["name"], item["metadata"]["uid"])
        return
    if episode is None or objects.is_paused(item):
        return
    spec = IncidentSpec.model_validate(item["spec"])
    status = _status(item["metadata"]["name"], spec, old, episode, interventions, impact, now)
    if old and old.get("level", 1) < status.level:
        cluster.tell(item, "Escalated", f"level {status.level}: {status.who}", is_warning=True)
    if old.get("phase") == "Firing" and status.phase == "Resolved":
        cluster.tell(item, "Resolved", f"after {status.duration_seconds} s")
    objects.write(cluster, PLURAL, item, status=status)


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
    interventions: Sequence[Document],
    impact: str,
    now: datetime,
) -> IncidentStatus:
    acts = [item for item in interventions if _belongs(item, episode, now)]
    timeline = sorted([*_alerts(episode), *_acts(acts)], key=lambda entry: entry.at)[:_MOST_LINES]
    is_firing = episode.ended_at is None
    told = impact if is_firing and impact else old.get("impact", "")
    incident = Incident(
        id=name, title=spec.title, priority=spec.priority, severity=spec.severity, created_at=_iso(episode.started_at),
        started_at=_iso(episode.started_at), ended_at=_iso(episode.ended_at) if episode.ended_at else None,
        group_id=episode.id, alertname=spec.alertname, scenario=spec.scenario, runbook_url=spec.runbook_url,
        impact=told, cause=spec.cause or "", actions=spec.actions, lessons=spec.lessons, timeline=timeline,
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
            "impact": told,
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
