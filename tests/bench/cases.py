# mypy: disable-error-code="no-untyped-call"
# PyMuPDF, the baseline, has no types.
"""One measured case per process: `python -m bench.cases CASE FOLDER` prints its CPU seconds and peak memory as JSON.

A case's set-up (imports, opening) counts, as it does in the product. Baselines are re-written here from what the
peers' public code does, without their frameworks, database and queue, which flatters them.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICTURES_PER_CALL = 20


def _source(folder: Path) -> Path:
    return folder / "source.pdf"


def ingest_extract(folder: Path) -> int:
    """Ours: inspect, cut, and a picture of every page, as the import job does."""
    from korrigo_ingest.engine.cutting import cut_copies
    from korrigo_ingest.engine.inspection import inspect_pdf
    from korrigo_ingest.engine.pictures import page_pictures

    found = inspect_pdf(folder)
    pages = [{"index": page["index"], "clip": None} for page in found["pages"]]
    cut_copies(folder, copies=[pages], clean=found["clean"])
    for start in range(0, len(pages), PICTURES_PER_CALL):
        page_pictures(folder, pages=pages[start : start + PICTURES_PER_CALL], find_blank=False, prefix=f"p{start}")
    return len(pages)


def ingest_png(folder: Path) -> int:
    """Baseline: every page rendered at 144 dpi and written as PNG, as the original import does."""
    import pymupdf

    with pymupdf.open(_source(folder)) as document:
        for page in document:
            page.get_pixmap(matrix=pymupdf.Matrix(2, 2)).save(folder / f"page_{page.number}.png")
        return len(document)


def _annotations(pages: int) -> list[dict[str, Any]]:
    kinds = ("COMMENT", "HIGHLIGHT", "ERROR", "BONUS", "TEXT")
    return [
        {
            "id": f"{page}-{number}",
            "page_index": page,
            "x": 0.1,
            "y": 0.12 + 0.16 * number,
            "w": 0.3,
            "h": 0.05,
            "type": kinds[number],
            "content": f"Remark {number} on page {page + 1}: a step is missing here.",
            "score_delta_hundredths": -50,
            "question_label": None,
            "strokes": [],
        }
        for page in range(pages)
        for number in range(5)
    ]


def flatten_append(folder: Path) -> int:
    """Ours: append overlays and a score page to the source, five annotations a page."""
    import hashlib

    import pikepdf

    from korrigo_render.engine.append import append

    with pikepdf.open(_source(folder)) as pdf:
        pages = len(pdf.pages)
    manifest = {
        "v": 1,
        "copy_id": "01890000-0000-7000-8000-000000000001",
        "anonymous_id": "BENCH1",
        "revision": 1,
        "exam": {"name": "Bench", "date": "2026-01-01"},
        "pages": [{"page_id": str(n), "index": n, "width": 595, "height": 842} for n in range(pages)],
        "annotations": _annotations(pages),
        "questions": [
            {"id": "q", "label": "Q", "max_hundredths": 2000, "score_hundredths": 1500, "state": "SCORED", "remark": ""}
        ],
        "total_hundredths": 1500,
        "max_hundredths": 2000,
        "appreciation": "Solid work.",
        "marker_code": "M1",
        "finalized_at": "2026-01-01T00:00:00.000000Z",
        "source_sha256": hashlib.sha256(_source(folder).read_bytes()).hexdigest(),
        "public_url": None,
        "language": "en",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    append(folder)
    return pages


def flatten_rewrite(folder: Path) -> int:
    """Baseline: the same marks drawn by PyMuPDF on the source's pages, the whole file written anew."""
    import pymupdf

    with pymupdf.open(_source(folder)) as document:
        for page in document:
            for mark in (item for item in _annotations(len(document)) if item["page_index"] == page.number):
                width, height = page.rect.width, page.rect.height
                box = pymupdf.Rect(mark["x"] * width, mark["y"] * height, 0.4 * width, (mark["y"] + 0.05) * height)
                page.draw_rect(box, color=(0, 0, 1))
                page.insert_text((box.x0, box.y1 + 9), mark["content"], fontsize=8)
        pages = len(document)
        document.new_page().insert_text((50, 50), "15 / 20")
        document.save(folder / "rewritten.pdf")
    return pages


def flatten_raster(folder: Path) -> int:
    """Baseline: page pictures at 144 dpi with the marks drawn on, as the original flattener does."""
    import pymupdf

    out = pymupdf.open()
    with pymupdf.open(_source(folder)) as document:
        for page in document:
            pixmap = page.get_pixmap(matrix=pymupdf.Matrix(2, 2))
            fresh = out.new_page(width=pixmap.width, height=pixmap.height)
            fresh.insert_image(fresh.rect, stream=pixmap.tobytes("png"))
            for mark in (item for item in _annotations(len(document)) if item["page_index"] == page.number):
                fresh.insert_text((mark["x"] * pixmap.width, mark["y"] * pixmap.height), mark["content"][:50])
        pages = len(document)
    out.save(folder / "raster.pdf")
    return pages


CASES: dict[str, Callable[[Path], int]] = {
    function.__name__: function
    for function in (ingest_extract, ingest_png, flatten_append, flatten_rewrite, flatten_raster)
}

if __name__ == "__main__":
    done = CASES[sys.argv[1]](Path(sys.argv[2]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"pages": done, "cpu_seconds": used.ru_utime + used.ru_stime, "rss_mib": used.ru_maxrss / 1024}))
