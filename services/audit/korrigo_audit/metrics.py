"""Gauges of the audit trail, read from its tables at scrape time."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily

from korrigo_kit.room import Runtime
from korrigo_kit.telemetry.metrics import GaugeSource


def gauges(rt: Runtime) -> list[GaugeSource]:
    """Build the gauge sources of this room."""

    def records() -> Iterable[GaugeMetricFamily]:
        with rt.db.transaction() as tx:
            # An estimate is enough here and costs nothing on millions of rows.
            row = tx.row("SELECT greatest(reltuples, 0)::bigint AS n FROM pg_class WHERE oid = 'records'::regclass")
        yield GaugeMetricFamily("korrigo_audit_records", "Events in the audit trail (planner's estimate).", row["n"])

    return [records]
