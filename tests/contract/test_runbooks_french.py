"""French runbooks and guides say what the English ones say: the same pages, commands, shape, names and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.runbooks import FRENCH, FRENCH_PARTS, GUIDES, ON_CALL, PAGES, RUNBOOKS, blocks, parts

SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")

FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def _targets(text: str) -> set[str]:
    """List where links lead, as seen from docs and whatever the language; places inside a page are named in its own."""
    links = {link for link in LINK.findall(_prose(text)) if not link.startswith("#")}
    return {re.sub(r"^(\.\./)+|\bfr/", "", link) for link in links}


def _shape(text: str) -> list[str]:
    """Name what the eye follows, in order: headings by level, list items, steps, table rows by columns, blocks."""
    kinds = {"#": r"(#+) ", "-": r"( *)- ", "1": r"( *)\d+\. ", "|": r"\|", "```": r"( *)```\w+$"}
    found = []
    for line in text.splitlines():
        for kind, pattern in kinds.items():
            if match := re.match(pattern, line):
                found.append(f"{kind} {line.count('|') if kind == '|' else len(match[1])}")
    return found


def test_every_page_is_there_in_french() -> None:
    assert {path.name for path in FRENCH.glob("*.md")} == {path.name for path in RUNBOOKS.glob("*.md")}
    assert {path.stem for path in (GUIDES / "fr").glob("*.md")} == set(ON_CALL)


@pytest.mark.parametrize(
    "page",
    [RUNBOOKS / "README.md", *PAGES, *(GUIDES / f"{name}.md" for name in ON_CALL)],
    ids=lambda page: f"{page.parent.name}/{page.stem}",
)
def test_the_french_page_has_the_same_commands_and_the_same_shape(page: Path) -> None:
    """What may be drifting apart unseen by somebody who reads one language only."""
    english, french = page.read_text(), (page.parent / "fr" / page.name).read_text()
    assert blocks(french) == blocks(english)
    assert FENCE.findall(french) == FENCE.findall(english)
    assert _shape(french) == _shape(english)
    assert set(SPAN.findall(_prose(french))) == set(SPAN.findall(_prose(english)))
    assert _targets(french) == _targets(english)
    if page in PAGES:
        found = parts(FRENCH / page.name)
        assert tuple(found) == FRENCH_PARTS
        ends = ("**C'est fini quand** ", "**Appelez** ", "**Pour que cela ne revienne pas**\u00a0: ")
        assert [found["Remèdes"].count(f"\n\n{words}") for words in ends] == [1, 1, 1]


@pytest.mark.parametrize(
    "page",
    sorted([*FRENCH.glob("*.md"), *(GUIDES / "fr").glob("*.md")]),
    ids=lambda page: f"{page.parent.parent.name}/{page.stem}",
)
def test_french_is_set_as_french(page: Path) -> None:
    """A narrow or plain no-break space before the double signs and inside the guillemets, which nobody sees missing."""
    prose = SPAN.sub("", LINK.sub("", _prose(page.read_text())))
    assert re.findall(r".{12}[^\s\u202f\u00a0|-][;!?»]|.{12}[ ][;!?»]|«[^\u00a0\u202f].{8}", prose) == []
    assert re.findall(r".{12}(?<![\u00a0|-]):(?=\s)", prose) == []


def test_a_french_page_leads_to_french_pages() -> None:
    for page in [*FRENCH.glob("*.md"), *(GUIDES / "fr").glob("*.md")]:
        for link in LINK.findall(_prose(page.read_text())):
            target = (page.parent / link.partition("#")[0]).resolve()
            if link.startswith(("http", "#")) or target.parent.name == "fr" or page.name == target.name:
                continue
            assert not (target.parent / "fr" / target.name).exists(), f"{page.name}: {link}"


def _prose(text: str) -> str:
    return re.sub(r"^( *)```\w+\n.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
