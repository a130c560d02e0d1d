"""What ingest measures, under the playbooks' names."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from korrigo_kit.room import Runtime
from korrigo_kit.telemetry.metrics import GaugeSource

# Work takes up to 300 s (operations.md 1).
WORK_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
PAGES_BUCKETS = ("1-10", "11-50", "51-100", "100+")
ERROR_TYPES = ("timeout", "invalid_pdf", "empty_result", "unknown", "ocr_unavailable", "low_confidence")
STATES = ("RECEIVED", "RUNNING", "NEEDS_REVIEW", "DONE", "FAILED", "REJECTED")

import_duration_seconds = Histogram(
    "grading_import_duration_seconds",
    "Time from the first work on a scan to its end.",
    ["status", "pages_bucket"],
    buckets=WORK_BUCKETS,
)
ocr_errors_total = Counter("grading_ocr_errors", "Scans and headers that could not be read.", ["error_type"])
for _status in ("success", "failed"):
    for _bucket in PAGES_BUCKETS:
        import_duration_seconds.labels(_status, _bucket)
for _type in ERROR_TYPES:
    ocr_errors_total.labels(_type)


def pages_bucket(pages: int) -> str:
    """Name the bucket of a page count (domain.md 1.16)."""
    return "1-10" if pages <= 10 else "11-50" if pages <= 50 else "51-100" if pages <= 100 else "100+"


def gauges(rt: Runtime) -> list[GaugeSource]:
    """Build the gauge sources of this room."""

    def scans() -> Iterable[GaugeMetricFamily]:
        with rt.db.transaction() as tx:
            rows = tx.all("SELECT state, count(*) AS n FROM scans GROUP BY state")
        counts = {row["state"]: row["n"] for row in rows}
        family = GaugeMetricFamily("korrigo_scans", "Scans by state.", labels=["state"])
        for state in STATES:
            family.add_metric([state], counts.get(state, 0))
        yield family

    return [scans]
