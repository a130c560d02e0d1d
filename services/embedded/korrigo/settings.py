"""Settings that only the front door has."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from korrigo_kit.settings import Section


class PostgresSettings(Section):
    section: ClassVar[str] = "postgres"
    binaries: str = Field("", description="Folder of PostgreSQL programs to use instead of those that ship with us.")


SECTIONS: tuple[type[Section], ...] = (PostgresSettings,)
