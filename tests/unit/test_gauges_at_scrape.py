"""Gauges read at scrape time: kept for a while, left out when their source is away, one family for all rooms."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from korrigo_kit.errors import Unavailable
from korrigo_kit.telemetry.metrics import CachedGauges, expose


def jobs_of(kind: str, count: int) -> CachedGauges:
    def source() -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("grading_jobs_of_test", "Jobs.", labels=["kind"])
        family.add_metric([kind], count)
        yield family

    return CachedGauges(source)


def test_rooms_share_a_family_and_every_scrape_tells_the_same() -> None:
    collectors = [jobs_of("import", 3), jobs_of("render", 4)]
    expose(collectors)
    text = expose(collectors).decode()
    assert text.count("# TYPE grading_jobs_of_test gauge") == 1
    (family,) = [item for item in text_string_to_metric_families(text) if item.name == "grading_jobs_of_test"]
    assert {(sample.labels["kind"], sample.value) for sample in family.samples} == {("import", 3), ("render", 4)}
    assert len(family.samples) == 2


def test_a_source_that_is_away_leaves_the_rest() -> None:
    def away() -> Iterable[GaugeMetricFamily]:
        raise Unavailable("DATABASE_UNAVAILABLE", "as asked")

    text = expose([CachedGauges(away), jobs_of("import", 1)]).decode()
    assert "grading_jobs_of_test" in text and "http_request_duration_seconds" in text
