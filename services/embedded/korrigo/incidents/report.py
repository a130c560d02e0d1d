"""The report of an incident as Markdown, by the template of domain.md 1.23; its headings are the template's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from korrigo.incidents import levels

if TYPE_CHECKING:
    from korrigo.incidents.book import Entry, Incident

# A command that looks; any other one acts.
LOOKING = ("doctor", "logs", "stuck", "queue", "audit", "config", "check_data_integrity", "export_audit_logs")
_UNKNOWN = "à compléter"
_CHECKS = (
    "Correction immédiate appliquée",
    "Monitoring renforcé ajouté",
    "Documentation mise à jour",
    "Tests préventifs créés",
)


def markdown(incident: Incident, now: datetime) -> str:
    """Write the report."""
    started = datetime.fromisoformat(incident.started_at)
    ended = datetime.fromisoformat(incident.ended_at) if incident.ended_at else None
    minutes = round(incident.lasted_seconds(now) / 60)
    level = incident.level(now)
    lines = [
        f"# Incident Report - [{started.astimezone(UTC):%Y-%m-%d-%H:%M}]",
        "",
        f"{_line(incident.title)} ({incident.id}). Heures en UTC.",
        "",
        "## Résumé",
        f"- **Début** : {_full(started)}",
        f"- **Fin** : {_full(ended) if ended else 'en cours'}",
        f"- **Durée** : {minutes} minutes",
        f"- **Impact** : {_line(incident.impact) or _UNKNOWN}",
        f"- **Criticité** : {'CRITICAL' if incident.severity == 'critical' else 'WARNING'}",
        f"- **Priorité, niveau** : {incident.priority}, N{level} ({levels.WHO[level]})",
        *([f"- **Fiche** : {incident.runbook_url}"] if incident.runbook_url else []),
        "",
        "## Chronologie",
        *(f"- **{_clock(at)}** : {text}" for at, text in milestones(incident)),
        "",
        "### Détail",
        *(f"- {_stamp(entry.at)} {entry.kind} : {_line(entry.text)}" for entry in incident.timeline),
        *(f"- (non consulté : {_line(what)})" for what in incident.unasked),
        "",
        "## Cause Racine",
        _line(incident.cause) or _UNKNOWN,
        "",
        "## Actions Correctives",
        *(f"- [{'x' if number == 0 and incident.ended_at else ' '}] {text}" for number, text in enumerate(_CHECKS)),
        *(f"- [ ] {_line(text)}" for text in incident.actions),
        "",
        "## Leçons Apprises",
        *([f"- {_line(text)}" for text in incident.lessons] or [_UNKNOWN]),
        "",
        *(["## Preuves", *(f"- {name}" for name in incident.snapshots), ""] if incident.snapshots else []),
    ]
    return "\n".join(lines)


def milestones(incident: Incident) -> list[tuple[str | None, str]]:
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
        (began.at if began else incident.started_at, f"Alerte détectée{what}"),
        (looked.at if looked else incident.created_at, "Investigation démarrée"),
        (found.at if found else None, "Cause racine identifiée"),
        (acted[-1].at if acted else None, f"Correction appliquée{f' ({_line(acted[-1].text)})' if acted else ''}"),
        (incident.ended_at, "Service restauré"),
    ]


def _is_look(entry: Entry) -> bool:
    return entry.kind == "command" and entry.text.split(" ")[0].replace("-", "_") in LOOKING


def _first(entries: list[Entry], is_wanted: object) -> Entry | None:
    assert callable(is_wanted)
    return next((entry for entry in entries if is_wanted(entry)), None)


def _full(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _clock(at: str | None) -> str:
    return f"{datetime.fromisoformat(at).astimezone(UTC):%H:%M}" if at else "--:--"


def _stamp(at: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _line(text: str) -> str:
    """Return a text as one line that opens nothing in Markdown."""
    return " ".join(text.split()).replace("<", "‹").replace("`", "'")
