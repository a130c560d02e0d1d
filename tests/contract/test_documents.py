"""What the documents promise exists: links, commands, targets, decisions in their form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _shell_lines(page: Path) -> list[str]:
    blocks = [body for language, body in FENCE.findall(page.read_text()) if language in {"bash", "sh", "console"}]
    return [line.strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    broken = [
        target for target in targets if target.split("#")[0] and not (page.parent / target.split("#")[0]).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = {word for span in re.findall(r"`make ([a-z-]+)[^`]*`", text) for word in [span]}
    named |= {match[1] for line in _shell_lines(page) if (match := re.match(r"make ([a-z-]+)", line))}
    assert named - targets == set()


def test_commands_of_the_readme_exist() -> None:
    page = ROOT / "README.md"
    text = page.read_text()
    named = set(re.findall(r"`korrigo ([a-z-]+)[^`]*`", text))
    named |= {match[1] for line in _shell_lines(page) if (match := re.match(r"(?:\S*/)?korrigo ([a-z-]+)", line))}
    korrigo = Path(sys.executable).parent / "korrigo"
    wide = {"COLUMNS": "200"}
    shown = subprocess.run([korrigo, "--help"], capture_output=True, check=True, text=True, env=wide).stdout
    assert named
    assert {word for word in named if not re.search(rf"^\W*{word}\b", shown, re.MULTILINE)} == set()


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    assert DECISIONS


@pytest.mark.parametrize("page", DECISIONS, ids=_name)
def test_a_decision_fits_on_a_page_and_says_when_it_is_wrong(page: Path) -> None:
    text = page.read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences", "How we would know it was wrong"]
    assert text.startswith(f"# {page.name[:4]} ")
    assert len(text.split()) <= 700
