"""What ingest measures, under the playbooks' names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client.core import Metric

from korrigo_kit.telemetry.gauges import storage
from korrigo_kit.telemetry.metrics import WORK_BUCKETS, GaugeSource, counter, gauge, histogram

PAGES_BUCKETS = ("1-10", "11-50", "51-100", "100+")
ERROR_TYPES = ("timeout", "invalid_pdf", "empty_result", "unknown", "ocr_unavailable", "low_confidence")

import_duration_seconds = histogram(
    "grading_import_duration_seconds",
    "Time of an import: of the attempt that succeeded, or from the upload to the last failure.",
    WORK_BUCKETS,
    status=("success", "failed"),
    pages_bucket=PAGES_BUCKETS,
)
ocr_errors_total = counter(
    "grading_ocr_errors_total", "Scans and headers that could not be read, by kind of error.", error_type=ERROR_TYPES
)
temp_upload_bytes = gauge("grading_temp_upload_bytes", "Size of uploads that are being received or were left behind.")


def pages_bucket(pages: int) -> str:
    """Name the bucket of a page count (domain.md 1.16)."""
    return "1-10" if pages <= 10 else "11-50" if pages <= 50 else "51-100" if pages <= 100 else "100+"


def gauges(spool: Callable[[], Path]) -> list[GaugeSource]:
    """Build the gauge sources of this room; `spool` tells the folder of uploads."""

    def uploads() -> Iterable[Metric]:
        folder = spool()
        yield temp_upload_bytes.value(sum(_size(path) for path in folder.glob("upload-*")))
        yield from storage({"uploads": folder})

    return [uploads]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # received meanwhile
        return 0
