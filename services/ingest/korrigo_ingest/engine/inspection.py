"""Look at an upload: refuse it by name, or tell its pages and whether its bytes may serve as they are.

Called by flows/scan first, in the sandbox. Structure only: nothing is rendered, no image is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pikepdf

from korrigo_ingest.engine import raster
from korrigo_ingest.engine.active import is_active, is_external, refuse_active_document
from korrigo_ingest.engine.boxes import PageBox, page_box
from korrigo_ingest.engine.content import content_streams, decoded, has_syntax_errors, is_image, iterate_objects
from korrigo_ingest.engine.document import Remarks, opened, page_objects
from korrigo_kit.sandbox import EngineError

OBJECTS_LOOKED_AT = 100_000
"""A file of more objects is never called clean: looking at each costs about 10 us."""

DECODED_TOTAL_BYTES = 256 << 20
"""All streams that are not images, decoded; past it the file is never called clean."""

PARSED_TOTAL_BYTES = 16 << 20
"""Content of all pages, parsed for syntax; qpdf takes about 80 ms a megabyte."""

IMAGE_PIXELS_LIMIT = 400_000_000
"""A 1200-dpi A3 page has 278 million; a declared image beyond this is a bomb, whatever its data."""

TAIL_BYTES = 1024
_NESTING_LIMIT = 24


def inspect_pdf(
    workdir: Path, *, source: str = "source.pdf", max_pages: int = 500, max_page_points: float = 14_400
) -> dict[str, Any]:
    """Inspect one PDF.

    Returns {page_count, pages: [{index, width, height, rotate, crop_box, user_unit}], clean, clean_reasons,
    repaired, encrypted}: width and height are points as displayed; `clean_reasons` are UPPER_SNAKE codes, empty
    when clean. Raises EngineError EMPTY_FILE, INVALID_MIME_TYPE, ENCRYPTED, CORRUPTED_PDF, EMPTY_PDF,
    TOO_MANY_PAGES, PAGE_TOO_LARGE, JAVASCRIPT, ACTIVE_CONTENT, RESOURCE_LIMIT.
    """
    path = workdir / source
    with opened(path) as pdf:
        remarks = Remarks(pdf)
        declared = _declared_pages(pdf)
        pages = page_objects(pdf)
        if not pages:
            raise EngineError("EMPTY_PDF", "the PDF has no page")
        if len(pages) > max_pages:
            raise EngineError("TOO_MANY_PAGES", f"the PDF has {len(pages)} pages, {max_pages} are allowed")
        refuse_active_document(pdf, pages)
        boxes = [page_box(page) for page in pages]
        _require_sizes(boxes, max_page_points)

        reasons = set(_structure_reasons(pdf, path, boxes))
        if declared != len(pages):
            reasons.add("PAGE_COUNT_WRONG")
        reasons |= _object_reasons(pdf)
        remarks.take()
        is_repaired = remarks.count > 0 or "PAGE_COUNT_WRONG" in reasons
        reasons |= _content_reasons(pages, remarks)
        if pdf.is_linearized and not _is_linearization_sound(pdf):
            reasons.add("LINEARIZATION")
        if is_repaired:
            reasons.add("REPAIRED")
            _require_second_reader(path, len(pages))
        return {
            "page_count": len(pages),
            "pages": [_page_json(index, box) for index, box in enumerate(boxes)],
            "clean": not reasons,
            "clean_reasons": sorted(reasons),
            "repaired": is_repaired,
            "encrypted": bool(pdf.is_encrypted),
        }


def _page_json(index: int, box: PageBox) -> dict[str, Any]:
    return {
        "index": index,
        "width": round(box.width, 3),
        "height": round(box.height, 3),
        "rotate": box.rotate,
        "crop_box": [round(value, 4) for value in box.rect],
        "user_unit": box.user_unit,
    }


def _declared_pages(pdf: pikepdf.Pdf) -> int | None:
    """Read /Count before qpdf mends the page tree; a lie there would break readers of the final PDF."""
    tree = pdf.Root.get("/Pages")
    count = tree.get("/Count") if isinstance(tree, pikepdf.Dictionary) else None
    return int(count) if isinstance(count, int) else None


def _require_sizes(boxes: list[PageBox], max_page_points: float) -> None:
    for index, box in enumerate(boxes):
        if box.longest_units > max_page_points:
            message = f"page {index + 1} is {box.longest_units:.0f} units long, {max_page_points:.0f} are allowed"
            raise EngineError("PAGE_TOO_LARGE", message)


def _require_second_reader(path: Path, pages: int) -> None:
    """Check a repaired file's page count against PDFium: a repair that readers do not agree on may lose pages."""
    try:
        with raster.document(path) as document:
            found = len(document)
    except EngineError as error:
        raise EngineError("CORRUPTED_PDF", "the PDF is damaged and only one of two readers opens it") from error
    if found != pages:
        raise EngineError("CORRUPTED_PDF", f"the PDF is damaged: one reader finds {pages} pages, another {found}")


def _structure_reasons(pdf: pikepdf.Pdf, path: Path, boxes: list[PageBox]) -> Iterator[str]:
    """Name what about the file as a whole keeps its bytes from being the source of a copy."""
    if pdf.is_encrypted:
        yield "ENCRYPTION"
    if "/OpenAction" in pdf.Root:
        yield "OPEN_ACTION"
    if not all(box.is_sound for box in boxes):
        yield "PAGE_BOX"
    with path.open("rb") as stream:
        if not stream.read(5).startswith(b"%PDF-"):
            yield "BYTES_BEFORE_HEADER"
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - TAIL_BYTES))
        end = stream.read()
    if not end.rstrip(b"\x00\t\n\f\r ").endswith(b"%%EOF"):
        yield "BYTES_AFTER_END"


def _is_linearization_sound(pdf: pikepdf.Pdf) -> bool:
    try:
        return bool(pdf.check_linearization(_Nowhere()))
    except (pikepdf.PdfError, RuntimeError, ValueError):
        return False


class _Nowhere:
    """A text stream for qpdf's remarks on linearization."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return None


def _object_reasons(pdf: pikepdf.Pdf) -> set[str]:
    """Parse every object; refuse external streams and image bombs; name what acts and what does not decode."""
    reasons: set[str] = set()
    total = seen = 0
    for item in iterate_objects(pdf, OBJECTS_LOOKED_AT + 1):
        seen += 1
        for dictionary in _dictionaries(item):
            if is_active(dictionary):
                reasons.add("ACTIVE_CONTENT")
        if isinstance(item, pikepdf.Stream):
            if is_external(item):
                raise EngineError("ACTIVE_CONTENT", "a stream of the PDF lies in another file")
            total += _stream_size(item, reasons, total)
    if seen > OBJECTS_LOOKED_AT or total > DECODED_TOTAL_BYTES:
        reasons.add("TOO_MUCH_TO_CHECK")
    return reasons


def _stream_size(stream: pikepdf.Stream, reasons: set[str], total: int) -> int:
    """Decode a stream that is no image and give its size; images only have to be of a possible size."""
    if is_image(stream):
        width, height = (stream.stream_dict.get(key) for key in ("/Width", "/Height"))
        if isinstance(width, int) and isinstance(height, int) and width * height > IMAGE_PIXELS_LIMIT:
            raise EngineError("RESOURCE_LIMIT", f"an image of {width} x {height} pixels is too large")
        return 0
    if total > DECODED_TOTAL_BYTES or str(stream.stream_dict.get("/Type", "")) in {"/XRef", "/ObjStm"}:
        return 0
    data, is_whole = decoded(stream)
    if not is_whole:
        reasons.add("BROKEN_STREAM")
    return len(data)


def _dictionaries(item: pikepdf.Object, depth: int = 0) -> Iterator[pikepdf.Dictionary]:
    """Give the dictionaries of one indirect object, direct ones nested in it included."""
    if depth > _NESTING_LIMIT:
        return
    children: list[Any] = []
    if isinstance(item, pikepdf.Stream):
        item = item.stream_dict
    if isinstance(item, pikepdf.Dictionary):
        yield item
        children = list(item.values())
    elif isinstance(item, pikepdf.Array):
        children = list(item.as_list())
    for child in children:
        if isinstance(child, (pikepdf.Dictionary, pikepdf.Array)) and not child.is_indirect:
            yield from _dictionaries(child, depth + 1)


def _content_reasons(pages: list[pikepdf.Dictionary], remarks: Remarks) -> set[str]:
    """Parse the content of the pages, as far as the budget goes."""
    parsed = 0
    for page in pages:
        streams = content_streams(page)
        parsed += sum(len(decoded(stream)[0]) for stream in streams)
        if parsed > PARSED_TOTAL_BYTES:
            return {"TOO_MUCH_TO_CHECK"}
        is_odd = not streams and page.get("/Contents") is not None and not _is_empty_array(page["/Contents"])
        if is_odd or has_syntax_errors(page, remarks):
            return {"CONTENT_SYNTAX"}
    return set()


def _is_empty_array(value: Any) -> bool:
    return isinstance(value, pikepdf.Array) and len(value) == 0
