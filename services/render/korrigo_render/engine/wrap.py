"""Breaking text into lines of a given width. Pure; called by `overlay` and `score_page`.

Nothing is ever cut off: a word wider than the line is broken inside. Line ends that were typed are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

TAB = "    "


def wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Return lines no wider than `width` (in the unit of `measure`, which must be additive), at least one.

    Only the ordinary space is a place to break: the no-break spaces of French typography hold. A single character
    wider than the line stands alone on it.
    """
    lines: list[str] = []
    for paragraph in text.replace("\t", TAB).split("\n"):
        lines.extend(_paragraph(paragraph, width, measure))
    return lines


def _paragraph(paragraph: str, width: float, measure: Callable[[str], float]) -> Iterator[str]:
    space = measure(" ")
    words: list[str] = []
    used = -space
    for word in paragraph.rstrip(" ").split(" "):
        needed = measure(word)
        if used + space + needed <= width:
            words.append(word)
            used += space + needed
            continue
        if any(words):
            yield " ".join(words).rstrip(" ")
        if needed <= width:
            words, used = [word], needed
        else:
            *full, last = _broken(word, width, measure)
            yield from full
            words, used = [last], measure(last)
    yield " ".join(words).rstrip(" ")


def _broken(word: str, width: float, measure: Callable[[str], float]) -> Iterator[str]:
    """Break a word that is too wide into pieces that fit; the last piece may be shorter."""
    piece, used = "", 0.0
    for character in word:
        needed = measure(character)
        if piece and used + needed > width:
            yield piece
            piece, used = "", 0.0
        piece += character
        used += needed
    yield piece
