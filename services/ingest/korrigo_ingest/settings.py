"""Settings of ingest: what may be uploaded, and the bounds of working on it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from korrigo_kit.settings import Section


class UploadSettings(Section):
    section: ClassVar[str] = "upload"
    max_bytes: int = Field(104_857_600, ge=1024, description="Largest PDF, in bytes.")
    max_pages: int = Field(500, ge=1, description="Most pages of one PDF.")
    max_page_points: float = Field(14_400, gt=0, description="Longest side of a page, in points.")
    spool: str | None = Field(
        None, description="Folder of uploads being received; default: the system's temporary one."
    )
    min_free_bytes: int = Field(1 << 30, ge=0, description="Uploads are refused when the spool has less room left.")


class ImportSettings(Section):
    section: ClassVar[str] = "import"
    base_seconds: float = Field(2, gt=0, description="Wall time of one piece of PDF work before pages are counted.")
    page_seconds: float = Field(1, gt=0, description="Wall time added for each page.")
    cap_seconds: float = Field(120, gt=0, description="Longest wall time of one piece of PDF work.")
    range_pages: int = Field(20, ge=1, le=20, description="Pages of one piece of picture work.")
    memory_bytes: int = Field(1 << 30, ge=1 << 26, description="Memory of one piece of PDF work.")
    output_bytes: int = Field(400 << 20, ge=1 << 20, description="Output of one piece of PDF work.")
    masked_fraction: float = Field(
        0.25, ge=0, le=1, description="Part of page 1 of a booklet that is hidden from markers, from the top."
    )


SECTIONS: tuple[type[Section], ...] = (UploadSettings, ImportSettings)
