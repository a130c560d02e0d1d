"""Whatever a page, an alert or a dashboard tells a person to type at 03:12 can be typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.alerts import ROOT, SCENARIOS, rules
from harness.commands_named import complaint, named
from harness.dashboards import FILES, panels
from korrigo.doctor import names

# commands.md is generated from the tree itself.
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "commands.md")]
# The playbooks' own names, the labels of the alerts, and all of them.
_SCENARIOS = SCENARIOS | names.SCENARIOS.keys() | {"all"}
_CODE = re.compile(r"^ *```\w*\n(.*?)^ *```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)


def _lines(text: str) -> Iterator[str]:
    """Yield the command lines in the code of a Markdown text."""
    for block, span in _CODE.findall(text):
        yield from named((block or span).replace("\\\n", " "))


def _wrong(lines: Iterator[str]) -> dict[str, str]:
    found = {line: complaint(line) for line in lines}
    for line in found:
        scenario = re.match(r"doctor scenario ([a-z-]+)", line)
        if scenario and scenario.group(1) not in _SCENARIOS:
            found[line] = f"no scenario {scenario.group(1)}"
    return {line: text for line, text in found.items() if text}


def test_doctor_knows_every_scenario_of_the_alerts() -> None:
    assert {word for word, _ in names.SCENARIOS.values()} == SCENARIOS


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: f"{rule['alert']}/{rule['labels']['severity']}")
def test_an_alert_names_commands_that_exist(rule: dict[str, dict[str, str]]) -> None:
    notes = rule["annotations"]
    assert _wrong(_lines(notes["first_response"] + notes["description"])) == {}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_names_commands_that_exist(path: Path) -> None:
    assert _wrong(_lines(path.read_text())) == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_a_dashboard_names_commands_that_exist(path: Path) -> None:
    for panel in panels(json.loads(path.read_text())):
        told = f"{panel.get('description', '')} {panel.get('options', {}).get('content', '')}"
        assert _wrong(_lines(told)) == {}


WRONG = {
    "nothing": "no command 'nothing'",
    "backup": "'backup' needs one more word",
    "backup undo": "no command 'backup undo'",
    "stuck --soon": "'stuck' has no option ['--soon']",
    "unlock-expired-copies --dry-run": "",
    "logs grep 'a b' --json": "",
    "doctor": "",
}


@pytest.mark.parametrize(("line", "text"), WRONG.items())
def test_what_cannot_be_typed_is_found(line: str, text: str) -> None:
    (found,) = named(f"KORRIGO_HOME=/x .venv/bin/korrigo {line} | head")
    assert complaint(found) == text
