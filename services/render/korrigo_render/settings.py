"""Settings of render: the bounds of one rendering."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from korrigo_kit.settings import Section


class RenderSettings(Section):
    section: ClassVar[str] = "render"
    base_seconds: float = Field(5, gt=0, description="Wall time of one rendering before its pages are counted.")
    page_seconds: float = Field(1, gt=0, description="Wall time added for each page.")
    cap_seconds: float = Field(120, gt=0, description="Longest wall time of one rendering.")
    memory_bytes: int = Field(1 << 30, ge=1 << 26, description="Memory of one rendering.")
    output_bytes: int = Field(400 << 20, ge=1 << 20, description="Largest final PDF.")


SECTIONS: tuple[type[Section], ...] = (RenderSettings,)
