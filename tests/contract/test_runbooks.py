"""Every alert has its runbook and every runbook its alert; their commands can be typed as they stand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.alerts import rules
from harness.runbooks import PAGES, PARTS, RUNBOOKS, blocks, parts

ROOT = RUNBOOKS.parents[1]
# The runbook column of the design's table of alerts.
NAMES = {
    "import-stuck", "ocr-errors", "finalization-failing", "retries-exhausted", "lock-conflicts", "expired-locks",
    "high-latency", "error-rate", "missing-audit-events", "audit-chain", "workers-down", "queue-backlog", "broker-down",
    "database-down", "database-connections", "database-blocked", "disk-space", "object-store", "login-failures",
    "intervention-failed", "sweeper-stale", "backup-too-old", "target-down", "metrics-absent", "watchdog",
}  # fmt: skip
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
EVERY = [RUNBOOKS / "README.md", *PAGES]
# Nothing here may destroy what somebody scanned, wrote or marked.
DESTRUCTIVE = re.compile(
    r"\brm\b|\b(DELETE|UPDATE|INSERT|DROP|TRUNCATE|ALTER)\s|-delete\b|\bmkfs|\bdd\b|FLUSH|purge|kill -9|--force\b"
)
ENDS_A_LOCK = re.compile(r"-X DELETE \"\$BASE/api/(locks/\$COPY|copies/\$COPY/lock)\"")


def _name(page: Path) -> str:
    return page.stem


def _runbook(alert: dict[str, Any]) -> str:
    return str(alert["annotations"]["runbook_url"]).rpartition("/")[2]


def test_every_alert_has_its_page_and_every_page_an_alert() -> None:
    assert {_runbook(alert) for alert in rules("alert")} == {page.stem for page in PAGES} == NAMES


def test_the_overview_lists_every_alert_with_its_priorities_and_page() -> None:
    table = parts(RUNBOOKS / "README.md")["By alert"]
    listed = re.findall(r"^\| (\w+) \| (P[\dP, ]+) \| \[([a-z-]+)\]\(\3\.md\) \|$", table, re.MULTILINE)
    priorities: dict[tuple[str, str], set[str]] = {}
    for alert in rules("alert"):
        priorities.setdefault((alert["alert"], _runbook(alert)), set()).add(alert["labels"]["priority"])
    assert {(name, page): set(given.split(", ")) for name, given, page in listed} == priorities
    assert len(listed) == len(priorities)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_has_its_four_parts_and_commands_in_two(page: Path) -> None:
    assert page.read_text().startswith(f"# {page.stem}\n")
    found = parts(page)
    assert tuple(found) == PARTS
    assert all(text.strip() for text in found.values())
    assert blocks(found["Diagnosis"]) and blocks(found["Mitigation"])
    assert not blocks(found["Meaning"] + found["Impact"])
    ends = ("**Over when** ", "**Call** ", "**So that it stays away**: ")
    assert [found["Mitigation"].count(f"\n\n{words}") for words in ends] == [1, 1, 1]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_explains_each_of_its_alerts(page: Path) -> None:
    """Where a page serves several alerts it names them, because the person paged has only the name."""
    alerts = {alert["alert"] for alert in rules("alert") if _runbook(alert) == page.stem}
    meaning = parts(page)["Meaning"]
    if len(alerts) > 1 and page.stem not in {"finalization-failing"}:
        assert {alert for alert in alerts if alert not in meaning} == set()


@pytest.mark.parametrize("page", [RUNBOOKS / "README.md", *PAGES, *GUIDES], ids=_name)
def test_every_command_block_is_sound_bash_and_destroys_nothing(page: Path) -> None:
    for block in blocks(page.read_text()):
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=20, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), block
        assert DESTRUCTIVE.search(ENDS_A_LOCK.sub("", block)) is None, block


def test_fences_are_closed_and_of_a_known_kind() -> None:
    for page in EVERY:
        fences = re.findall(r"^ *```(\w*)", page.read_text(), re.MULTILINE)
        kinds = {"bash", "promql"} if page.name == "README.md" else {"bash"}
        assert set(fences[::2]) <= kinds and set(fences[1::2]) <= {""}, page
        assert len(fences) - 2 * fences.count("promql") == 2 * len(blocks(page.read_text())), page
