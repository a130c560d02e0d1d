"""The runbooks in a drill: the Mitigation part of a page, run as it stands, with the preamble of its folder.

`docs/runbooks` is read from the checkout: what is tested is what people read.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Mapping

from korrigo.drills import rules
from korrigo.drills.scratch import Scratch
from korrigo_kit.errors import Bug

# A block inside a list is indented with it.
_BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_SECONDS = 180


def blocks(page: str, part: str) -> list[str]:
    """List the command blocks of a part of a page; raises Bug DRILL_NO_PAGE."""
    text = rules.checkout(f"docs/runbooks/{page}.md").read_text(encoding="utf-8")
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    for section in sections:
        title, _, body = section.partition("\n")
        if title.strip() == part:
            return [textwrap.dedent(block) for _, block in _BLOCK.findall(body)]
    raise Bug("DRILL_NO_PAGE", f"{page} has no part {part}")


class Book:
    """The pages at the elbow of somebody who works on this instance."""

    def __init__(self, scratch: Scratch, token: str) -> None:
        self._scratch = scratch
        self._token = token

    def mitigate(self, page: str, environment: Mapping[str, str]) -> None:
        """Run every command block of a page's Mitigation in one terminal; raises Bug DRILL_PAGE_FAILED."""
        (preamble,) = blocks("README", "Preamble")
        script = "\n".join([preamble, *blocks(page, "Mitigation")])
        env = self._scratch.env | {"BASE": self._scratch.url, "TOKEN": self._token, **environment}
        try:
            done = self._scratch.run(["bash", "-euo", "pipefail", "-c", script], env, _SECONDS)
        except subprocess.TimeoutExpired:
            raise Bug("DRILL_PAGE_FAILED", f"the Mitigation of {page} took more than {_SECONDS} s") from None
        if done.returncode != 0:
            text = done.stderr[-600:]
            raise Bug("DRILL_PAGE_FAILED", f"the Mitigation of {page} ended with {done.returncode}: {text}")
