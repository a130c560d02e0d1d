"""Reading the runbooks: parts and command blocks, for the contract test and for the test that runs them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

RUNBOOKS = Path(__file__).resolve().parents[2] / "docs" / "runbooks"
PARTS = ("Meaning", "Impact", "Diagnosis", "Mitigation")
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
# A block inside a list is indented with it.
_BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def parts(page: Path) -> dict[str, str]:
    """Map the headings of the second level to the text below them."""
    _, *sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    return {title: text for title, _, text in (section.partition("\n") for section in sections)}


def blocks(text: str) -> list[str]:
    """List the command blocks of a text."""
    return [textwrap.dedent(body) for _, body in _BLOCK.findall(text)]


def preamble() -> str:
    """Return the functions that every page's commands build on."""
    (found,) = blocks(parts(RUNBOOKS / "README.md")["Preamble"])
    return found
