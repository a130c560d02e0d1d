"""Which characters the final PDF can draw. Grading asks before it stores text, the render engine draws by it.

Text is checked when it is written (422 UNSUPPORTED_CHARACTER), so that finalising never fails for text that
was accepted earlier (decisions.md, "The source of a copy and the final PDF").
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right

from korrigo_kit.glyphs_table import RANGES

_FIRSTS = [first for first, _ in RANGES]
# Left behind by copying from web pages and word processors; they draw nothing, so they are dropped, not refused:
# soft hyphen, zero-width space, word joiner, byte order mark, variation selectors 15 and 16.
_DROPPED = dict.fromkeys((0x00AD, 0x200B, 0x2060, 0xFEFF, 0xFE0E, 0xFE0F))


def normalise(text: str) -> str:
    """Return `text` as it is drawn: NFC, line ends as newline, invisible leftovers dropped."""
    composed = unicodedata.normalize("NFC", text.translate(_DROPPED))
    return composed.replace("\r\n", "\n").replace("\r", "\n")


def is_covered(code_point: int) -> bool:
    """Tell whether the font draws this code point."""
    at = bisect_right(_FIRSTS, code_point) - 1
    return at >= 0 and code_point <= RANGES[at][1]


def unsupported(text: str) -> list[str]:
    """List the characters of `text` that the final PDF cannot draw, each once, in order; newline and tab pass."""
    found = {c: None for c in normalise(text) if c not in "\n\t" and not is_covered(ord(c))}
    return list(found)


def describe(character: str) -> str:
    """Name a refused character so that a person can find it: `U+1F600 GRINNING FACE`."""
    return f"U+{ord(character):04X} {unicodedata.name(character, 'without a name')}"
