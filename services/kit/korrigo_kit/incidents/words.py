"""What a report of an incident says, in English and in French.

The headings are those of the template (domain.md 1.23). Names of alerts, actions and commands are the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT = "en"


@dataclass(frozen=True, slots=True)
class Words:
    """The fixed words of a report; what stands in braces is filled in."""

    intro: str
    summary: str
    start: str
    end: str
    duration: str
    impact: str
    criticality: str
    priority: str
    runbook: str
    minutes: str
    ongoing: str
    timeline: str
    details: str
    unasked: str
    cause: str
    actions: str
    checks: tuple[str, str, str, str]
    lessons: str
    evidence: str
    unknown: str
    # The template's five lines of the timeline.
    detected: str
    investigated: str
    understood: str
    corrected: str
    restored: str
    times: str
    stuck_copies: str
    # Between a label and its value.
    colon: str
    kinds: Mapping[str, str]
    sources: Mapping[str, str]
    levels: Mapping[int, str]


LANGUAGES: dict[str, Words] = {
    "en": Words(
        intro="Times are UTC.",
        summary="Summary",
        start="Start",
        end="End",
        duration="Duration",
        impact="Impact",
        criticality="Criticality",
        priority="Priority, level",
        runbook="Runbook",
        minutes="{count} minutes",
        ongoing="not yet",
        timeline="Timeline",
        details="Details",
        unasked="not asked",
        cause="Root Cause",
        actions="Corrective Actions",
        checks=(
            "Immediate fix applied",
            "Monitoring strengthened",
            "Documentation updated",
            "Preventive tests written",
        ),
        lessons="Lessons Learned",
        evidence="Evidence",
        unknown="to be completed",
        detected="Alert detected",
        investigated="Investigation started",
        understood="Root cause identified",
        corrected="Fix applied",
        restored="Service restored",
        times="{count} times until {until}",
        stuck_copies="{count} copies stand still ({parts}); no data lost",
        colon=":",
        kinds={name: name for name in ("alert", "resolved", "failure", "act", "command", "note")},
        sources={},
        levels={1: "the product heals itself", 2: "support", 3: "developers", 4: "architecture"},
    ),
    "fr": Words(
        intro="Heures en UTC.",
        summary="Résumé",
        start="Début",
        end="Fin",
        duration="Durée",
        impact="Impact",
        criticality="Criticité",
        priority="Priorité, niveau",
        runbook="Fiche",
        minutes="{count} minutes",
        ongoing="en cours",
        timeline="Chronologie",
        details="Détail",
        unasked="non consulté",
        cause="Cause Racine",
        actions="Actions Correctives",
        checks=(
            "Correction immédiate appliquée",
            "Monitoring renforcé ajouté",
            "Documentation mise à jour",
            "Tests préventifs créés",
        ),
        lessons="Leçons Apprises",
        evidence="Preuves",
        unknown="à compléter",
        detected="Alerte détectée",
        investigated="Investigation démarrée",
        understood="Cause racine identifiée",
        corrected="Correction appliquée",
        restored="Service restauré",
        times="{count} fois jusqu'à {until}",
        stuck_copies="{count} copies bloquées ({parts}) ; aucune donnée perdue",
        colon=" :",
        kinds={
            "alert": "alerte",
            "resolved": "fin d'alerte",
            "failure": "échec",
            "act": "acte",
            "command": "commande",
            "note": "note",
        },
        sources={"alerts": "alertes", "audit trail": "piste d'audit", "impact": "conséquences"},
        levels={1: "le produit se répare seul", 2: "assistance", 3: "développement", 4: "architecture"},
    ),
}


def language_of(locale: str) -> str:
    """Return the language of a POSIX locale such as fr_FR.UTF-8; English where there is none."""
    language = locale[:2].lower()
    return language if language in LANGUAGES else DEFAULT
