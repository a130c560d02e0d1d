"""The report of an incident as Markdown, by the template of domain.md 1.23, in one of two languages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from korrigo_kit.incidents.record import Entry, Incident
from korrigo_kit.incidents.words import LANGUAGES, Words

# A command that looks; any other one acts.
LOOKING = ("doctor", "logs", "stuck", "queue", "audit", "config", "check_data_integrity", "export_audit_logs")


def markdown(incident: Incident, now: datetime, language: str | None = None) -> str:
    """Write the report, in the incident's language or another of words.LANGUAGES."""
    words = LANGUAGES[language or incident.language]
    started = datetime.fromisoformat(incident.started_at)
    lines = [
        f"# Incident Report - [{started.astimezone(UTC):%Y-%m-%d-%H:%M}]",
        "",
        f"{_line(incident.title)} ({incident.id}). {words.intro}",
        "",
        f"## {words.summary}",
        *(f"- **{label}**{words.colon} {text}" for label, text in _summary(incident, now, words)),
        "",
        f"## {words.timeline}",
        *(f"- **{_clock(at)}**{words.colon} {text}" for at, text in milestones(incident, words)),
        "",
        f"### {words.details}",
        *(f"- {_stamp(entry.at)} {_detail(entry, words)}" for entry in incident.timeline),
        *(f"- ({words.unasked}{words.colon} {_source(what, words)})" for what in incident.unasked),
        "",
        f"## {words.cause}",
        _line(incident.cause) or words.unknown,
        "",
        f"## {words.actions}",
        *(f"- [{'x' if incident.ended_at and text == words.checks[0] else ' '}] {text}" for text in words.checks),
        *(f"- [ ] {_line(text)}" for text in incident.actions),
        "",
        f"## {words.lessons}",
        *([f"- {_line(text)}" for text in incident.lessons] or [words.unknown]),
        "",
        *([f"## {words.evidence}", *(f"- {name}" for name in incident.snapshots), ""] if incident.snapshots else []),
    ]
    return "\n".join(lines)


def impact(incident: Incident, words: Words) -> str:
    """Return what a person wrote of the impact, else what the product saw; empty when nothing is known."""
    if incident.impact or not incident.stuck_copies:
        return _line(incident.impact)
    parts = ", ".join(f"{count} × {name}" for name, count in sorted(incident.stuck_copies.items()))
    return words.stuck_copies.format(count=sum(incident.stuck_copies.values()), parts=parts)


def _summary(incident: Incident, now: datetime, words: Words) -> list[tuple[str, str]]:
    level = incident.level(now)
    found = [
        (words.start, _stamp(incident.started_at)),
        (words.end, _stamp(incident.ended_at) if incident.ended_at else words.ongoing),
        (words.duration, words.minutes.format(count=round(incident.lasted_seconds(now) / 60))),
        (words.impact, impact(incident, words) or words.unknown),
        (words.criticality, "CRITICAL" if incident.severity == "critical" else "WARNING"),
        (words.priority, f"{incident.priority}, N{level} ({words.levels[level]})"),
    ]
    return [*found, (words.runbook, incident.runbook_url)] if incident.runbook_url else found


def milestones(incident: Incident, words: Words) -> list[tuple[str | None, str]]:
    """Return the template's five lines: when each happened, as far as it is known."""
    began = _first(incident.timeline, lambda entry: entry.kind == "alert")
    looked = _first(incident.timeline, lambda entry: entry.at >= incident.started_at and _is_look(entry))
    found = _first(incident.timeline, lambda entry: entry.kind == "note" and entry.text.startswith("cause"))
    acted = [
        entry
        for entry in incident.timeline
        if incident.started_at <= entry.at <= (incident.ended_at or entry.at)
        and (entry.kind == "act" or (entry.kind == "command" and not _is_look(entry) and "--dry-run" not in entry.text))
    ]
    what = f" ({incident.alertname})" if incident.alertname else ""
    return [
        (began.at if began else incident.started_at, f"{words.detected}{what}"),
        (looked.at if looked else incident.created_at, words.investigated),
        (found.at if found else None, words.understood),
        (acted[-1].at if acted else None, f"{words.corrected}{f' ({_line(acted[-1].text)})' if acted else ''}"),
        (incident.ended_at, words.restored),
    ]


def _is_look(entry: Entry) -> bool:
    return entry.kind == "command" and entry.text.split(" ")[0].replace("-", "_") in LOOKING


def _first(entries: list[Entry], is_wanted: Callable[[Entry], bool]) -> Entry | None:
    return next((entry for entry in entries if is_wanted(entry)), None)


def _detail(entry: Entry, words: Words) -> str:
    kind = words.kinds.get(entry.kind, entry.kind)
    told = f"{kind}{words.colon} {_line(entry.text)}"
    if entry.times > 1:
        until = f"{datetime.fromisoformat(entry.until or entry.at).astimezone(UTC):%H:%M:%S}"
        told += f", {words.times.format(count=entry.times, until=until)}"
    return told


def _source(what: str, words: Words) -> str:
    """Name a source that was not asked: "alerts (DATABASE_UNAVAILABLE)"."""
    name, bracket, why = what.partition(" (")
    return _line(f"{words.sources.get(name, name)}{bracket}{why}")


def _clock(at: str | None) -> str:
    return f"{datetime.fromisoformat(at).astimezone(UTC):%H:%M}" if at else "--:--"


def _stamp(at: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _line(text: str) -> str:
    """Return a text as one line that opens nothing in Markdown."""
    return " ".join(text.split()).replace("<", "‹").replace("`", "'")
