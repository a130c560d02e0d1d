"""What render measures."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily

from korrigo_kit.room import Runtime
from korrigo_kit.telemetry.metrics import GaugeSource

WORK_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

render_duration_seconds = Histogram(
    "korrigo_render_duration_seconds",
    "Time of one attempt to make and verify a final PDF.",
    ["status"],
    buckets=WORK_BUCKETS,
)
for _status in ("success", "failed"):
    render_duration_seconds.labels(_status)


def gauges(rt: Runtime) -> list[GaugeSource]:
    """Build the gauge sources of this room."""

    def jobs() -> Iterable[GaugeMetricFamily]:
        with rt.db.transaction() as tx:
            rows = tx.all("SELECT state, count(*) AS n FROM renders GROUP BY state")
        family = GaugeMetricFamily("korrigo_renders", "Final PDFs asked for, by state.", labels=["state"])
        counts = {row["state"]: row["n"] for row in rows}
        for state in ("REQUESTED", "RENDERED", "FAILED"):
            family.add_metric([state], counts.get(state, 0))
        yield family

    return [jobs]
