"""What a run of drills tells people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from korrigo.drills.drill import Drill
from korrigo.drills.engine import Result

_HEADS = ("SCENARIO", "CAUSE", "EXPECTED ALERT", "DETECTED", "DOCTOR'S FIRST CAUSE", "HEALED", "ALERT ENDED", "VERDICT")


def declared(kinds: Sequence[type[Drill]]) -> list[dict[str, Any]]:
    """Return what is expected of each drill."""
    return [
        {
            "name": kind.title(),
            "scenario": kind.scenario,
            "cause": kind.cause,
            "what": kind.what,
            "expects": list(kind.signs()) or ["none"],
            "also": list(kind.also),
            "pages": list(kind.pages),
        }
        for kind in kinds
    ]


def declarations(kinds: Sequence[type[Drill]]) -> list[str]:
    """Write the same for people."""
    return [f"{kind.title():24} {', '.join(kind.signs()) or 'none':42} {kind.what}" for kind in kinds]


def told(results: Sequence[Result], healthy_problems: Sequence[str]) -> dict[str, Any]:
    """Return the outcome for programs."""
    drills = [asdict(result) | {"is_passed": result.is_passed} for result in results]
    return {"healthy_problems": list(healthy_problems), "drills": drills}


def lines(results: Sequence[Result], healthy_problems: Sequence[str]) -> list[str]:
    """Write the table, then what went wrong."""
    rows = [_HEADS, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    problems = [f"before the first drill, doctor found {problem}" for problem in healthy_problems]
    problems += [f"{result.name}: {problem}" for result in results for problem in result.problems]
    skipped = [f"SKIPPED {result.name}: {result.skipped}" for result in results if result.skipped]
    passed = sum(result.is_passed for result in results)
    return [*table, *problems, *skipped, f"{passed} of {len(results)} drills passed"]


def _row(result: Result) -> tuple[str, ...]:
    verdict = "skipped" if result.skipped else "passed" if result.is_passed else "FAILED"
    return (
        result.scenario,
        result.name,
        ", ".join(result.expected) or "none",
        _seconds(result.detect_seconds),
        result.first_cause or "-",
        _seconds(result.heal_seconds),
        _seconds(result.resolve_seconds),
        verdict,
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
