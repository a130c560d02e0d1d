"""The heading of doctor that counts errors: the hour is told, the last quarter of it is judged."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from korrigo.doctor import health
from korrigo.doctor.lines import Lines
from korrigo.doctor.patient import Patient


def write(folder: Path, name: str, *entries: tuple[int, str, dict[str, Any]]) -> None:
    """Add lines of so many minutes ago."""
    with (folder / name).open("a") as file:
        for minutes, level, more in entries:
            at = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
            file.write(json.dumps({"timestamp": at, "level": level, "message": f"at -{minutes}", **more}) + "\n")


def asked(folder: Path) -> health.Finding:
    patient = cast(Patient, SimpleNamespace(lines=Lines([folder])))
    [check] = [check for check in health.CHECKS if check.name == "errors"]
    return health._asked(check, patient)


def test_the_hour_is_counted_and_the_quarter_judged(tmp_path: Path) -> None:
    write(
        tmp_path, "worker.log", (70, "ERROR", {}), *[(40, "ERROR", {"n": n}) for n in range(12)], (30, "CRITICAL", {})
    )
    write(tmp_path, "worker.log.1", (50, "ERROR", {}), (20, "INFO", {"message": 'somebody said "ERROR"'}))
    write(tmp_path, "api.log", (5, "ERROR", {}), (4, "ERROR", {"reason": "SCORE_INCOMPLETE"}), (3, "INFO", {}))
    found = asked(tmp_path)
    assert found.heading == "errors of the last hour"
    assert found.is_ok is True
    assert found.text.startswith("15 lines of ERROR or above, 1 of them in the last 15 minutes; the last: at -30")
    write(tmp_path, "api.log", *[(5, "ERROR", {"n": n}) for n in range(10)])
    assert asked(tmp_path).is_ok is False


def test_one_critical_line_of_the_last_minutes_is_enough(tmp_path: Path) -> None:
    write(tmp_path, "worker.log", (2, "CRITICAL", {}))
    write(tmp_path, "django.log", (2, "CRITICAL", {}), (1, "CRITICAL", {}))  # repeats, and is not counted
    found = asked(tmp_path)
    assert found.is_ok is False and found.hint and found.text.startswith("1 lines")


def test_no_logs_is_no_answer(tmp_path: Path) -> None:
    assert asked(tmp_path / "none").is_ok is None
