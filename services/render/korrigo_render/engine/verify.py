"""Check a final PDF with a second renderer before a copy may become GRADED.

Run in the sandbox by flows as `korrigo_render.engine.verify:verify`. PDFium shares no code with what wrote the
file, so a mistake in the writer cannot hide here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pypdfium2

from korrigo_kit.sandbox import EngineError

_CHUNK = 1 << 20
_LONGEST_SIDE = 400  # pixels; enough to run every operator of a page, cheap on big scans


def verify(
    workdir: Path, final: str, source: str, expected_pages: int, annotated_pages: list[int] | None = None
) -> dict[str, Any]:
    """Check page counts, the byte prefix, and that pages render.

    `expected_pages` counts source and score pages; `annotated_pages` (0-based) are rendered with the score pages,
    None renders every page. Returns {pages, source_pages, rendered, sha256, size}. Raises EngineError
    FINAL_INVALID.
    """
    sha256, size = _compare_prefix(workdir / final, workdir / source)
    with _document(workdir / source, "SOURCE_UNREADABLE") as document:
        source_pages = len(document)
    with _document(workdir / final, "FINAL_INVALID") as document:
        pages = len(document)
        if pages != expected_pages or pages <= source_pages:
            raise EngineError("FINAL_INVALID", f"the final PDF has {pages} pages, {expected_pages} were expected")
        touched = range(source_pages) if annotated_pages is None else annotated_pages
        rendered = [*touched, *range(source_pages, pages)]
        for index in rendered:
            _render(document, index)
    return {"pages": pages, "source_pages": source_pages, "rendered": rendered, "sha256": sha256, "size": size}


def _compare_prefix(final: Path, source: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with final.open("rb") as whole, source.open("rb") as prefix:
        while expected := prefix.read(_CHUNK):
            found = whole.read(len(expected))
            if found != expected:
                raise EngineError("FINAL_INVALID", "the source is not the first bytes of the final PDF")
            digest.update(found)
            size += len(found)
        while rest := whole.read(_CHUNK):
            digest.update(rest)
            size += len(rest)
    return digest.hexdigest(), size


@contextmanager
def _document(path: Path, reason: str) -> Iterator[pypdfium2.PdfDocument]:
    # Opened here because the library would make the name absolute, which the sandbox cannot reach.
    with path.open("rb") as file:
        try:
            document = pypdfium2.PdfDocument(file)
        except pypdfium2.PdfiumError as error:
            raise EngineError(reason, f"{path.name} does not open", detail=str(error)) from error
        try:
            yield document
        finally:
            document.close()


def _render(document: pypdfium2.PdfDocument, index: int) -> None:
    try:
        page = document[index]
        scale = min(1.0, _LONGEST_SIDE / max(page.get_width(), page.get_height(), 1.0))
        bitmap = page.render(scale=scale)
        bitmap.close()
        page.close()
    except (pypdfium2.PdfiumError, ValueError) as error:
        raise EngineError("FINAL_INVALID", f"page {index + 1} of the final PDF does not render") from error
