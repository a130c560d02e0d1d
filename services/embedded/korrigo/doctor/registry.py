"""Every cause there is, and the ranking of what is found. Called by `korrigo doctor scenario`, drills and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from korrigo.doctor import (
    broker,
    database,
    finalization_failing,
    high_latency,
    import_stuck,
    lock_conflicts,
    missing_audit_events,
    monitoring,
    storage,
    web,
)
from korrigo.doctor.causes import Blind, Cause, Diagnosis, Found, Named, Remedy
from korrigo.doctor.names import SCENARIOS
from korrigo.doctor.patient import Patient
from korrigo_kit.errors import Invalid

# What stands first here explains what stands after it, when both are as certain.
CAUSES: tuple[Cause, ...] = (
    *web.CAUSES,
    *database.CAUSES,
    *broker.CAUSES,
    *storage.CAUSES,
    *import_stuck.CAUSES,
    *monitoring.CAUSES,
    *high_latency.CAUSES,
    *finalization_failing.CAUSES,
    *lock_conflicts.CAUSES,
    *missing_audit_events.CAUSES,
)


def scenario(word: str) -> str:
    """Return a scenario's name for its name or the alerts' word; raises Invalid UNKNOWN_NAME."""
    for name, (alias, _) in SCENARIOS.items():
        if word in (name, alias):
            return name
    raise Invalid("UNKNOWN_NAME", f"{word} is none of {', '.join(SCENARIOS)}")


def of(name: str) -> list[Cause]:
    """List the causes of a scenario; its own come first."""
    found = [cause for cause in CAUSES if name in cause.scenarios]
    return sorted(found, key=lambda cause: cause.scenarios[0] != name)


class Looked:
    """What every cause found in one patient, each asked once however many scenarios it belongs to."""

    def __init__(self, patient: Patient) -> None:
        self._patient = patient
        self._answers: dict[str, Found | Blind | None] = {}

    def diagnose(self, name: str) -> Diagnosis:
        """Ask every cause of a scenario and rank those that are there."""
        causes = of(name)
        answers = {cause.slug: self._answer(cause) for cause in causes}
        found = {slug: answer for slug, answer in answers.items() if isinstance(answer, Found)}
        return Diagnosis(
            name,
            [self._named(cause, found[cause.slug]) for cause in rank(causes, found)],
            [{"cause": slug, **_told(answer)} for slug, answer in answers.items()],
        )

    def _answer(self, cause: Cause) -> Found | Blind | None:
        if cause.slug not in self._answers:
            try:
                self._answers[cause.slug] = cause.find(self._patient)
            except Blind as blind:
                self._answers[cause.slug] = blind
            except Exception as error:  # one look that fails must not hide what the others see
                self._answers[cause.slug] = Blind(f"{type(error).__name__}: {error}")
        return self._answers[cause.slug]

    def _named(self, cause: Cause, found: Found) -> Named:
        remedies = [_filled(item, found.values) for item in cause.remedies if item.mode in ("", self._patient.mode)]
        return Named(cause.slug, cause.title, round(found.certainty, 2), found.evidence, remedies, cause.runbook)


def rank(causes: Sequence[Cause], found: Mapping[str, Found]) -> list[Cause]:
    """Order the causes that were found: by certainty; of equal ones the first in the registry explains the other."""
    place = {cause.slug: index for index, cause in enumerate(CAUSES)}
    there = [cause for cause in causes if cause.slug in found]
    return sorted(there, key=lambda cause: (-round(found[cause.slug].certainty, 2), place.get(cause.slug, len(place))))


def _told(answer: Found | Blind | None) -> dict[str, str]:
    if isinstance(answer, Blind):
        return {"result": "unknown", "note": str(answer)}
    return {"result": "found" if answer else "absent", "note": answer.evidence[0] if answer else ""}


# Shown where the evidence names none; commands refuse these words.
_UNKNOWN = {"copy": "COPY_ID", "scan": "SCAN_ID", "room": "ROOM", "pid": "PID", "url": "URL"}


def _filled(remedy: Remedy, values: Mapping[str, str]) -> dict[str, str | None]:
    known = dict(values)
    for name, shown in _UNKNOWN.items():
        known.setdefault(name, shown)
    return {
        "command": remedy.command.format_map(known),
        "dry_run": remedy.dry_run.format_map(known) if remedy.dry_run else None,
        "what": remedy.what,
    }
