"""Audit has no settings of its own yet."""

from __future__ import annotations

from korrigo_kit.settings import Section

SECTIONS: tuple[type[Section], ...] = ()
