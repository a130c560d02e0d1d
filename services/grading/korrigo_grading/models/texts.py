"""Text typed by people: stored as it will be drawn, refused when the final PDF could not draw it."""

from __future__ import annotations

from korrigo_kit import glyphs
from korrigo_kit.errors import Invalid


def drawable(field: str, text: str) -> str:
    """Return text in its stored form; raises Invalid (UNSUPPORTED_CHARACTER) naming the characters."""
    found = glyphs.unsupported(text)
    if found:
        names = [glyphs.describe(character) for character in found[:10]]
        raise Invalid(
            "UNSUPPORTED_CHARACTER",
            f"{field}: the final PDF cannot draw {', '.join(names)}",
            field=field,
            characters=names,
        )
    return glyphs.normalise(text)


def drawable_line(field: str, text: str, longest: int) -> str:
    """Return one line without spaces around it; raises Invalid (INVALID_TEXT, UNSUPPORTED_CHARACTER)."""
    line = drawable(field, text).strip()
    if not 1 <= len(line) <= longest or "\n" in line or "\t" in line:
        raise Invalid("INVALID_TEXT", f"{field}: one line of 1 to {longest} characters", field=field)
    return line
