"""What a process tells of the last minutes: which samples, summed up how, and the quantile of several replicas."""

from __future__ import annotations

import importlib

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from korrigo_kit.telemetry import figures, metrics
from korrigo_kit.telemetry.figures import LATENCY, Told

INF = "+Inf"


def _told(service: str, **buckets: float) -> Told:
    bounds = {"a": "0.1", "b": "1.0", "c": "5.0", "d": INF}
    found = {(f"{LATENCY}_bucket", bounds[name]): value for name, value in buckets.items()}
    return Told(f"{service}:host:1", service, 900, found)


def test_one_label_is_kept_and_answers_that_are_meant_to_last_are_left_out() -> None:
    registry = CollectorRegistry()
    requests = Counter("http_requests_total", "r", ["method", "path", "status"], registry=registry)
    duration = Histogram(LATENCY, "d", ["method", "path", "status"], buckets=(1, 5), registry=registry)
    unknown = Counter("something_else_total", "s", registry=registry)
    unknown.inc()
    for path, seconds in (("/api/exams", 0.5), ("/api/copies/{copy_id}", 3), ("/api/scans/{scan_id}/events", 600)):
        requests.labels("GET", path, "200").inc()
        duration.labels("GET", path, "200").observe(seconds)
    requests.labels("GET", "/api/exams", "503").inc(2)
    assert figures.numbers(registry.collect()) == {
        ("http_requests_total", "200"): 3, ("http_requests_total", "503"): 2,
        (f"{LATENCY}_bucket", "1.0"): 1, (f"{LATENCY}_bucket", "5.0"): 2, (f"{LATENCY}_bucket", INF): 2,
    }  # fmt: skip


def test_what_is_told_exists_with_the_label_that_is_kept() -> None:
    for room in ("grading", "ingest"):
        importlib.import_module(f"korrigo_{room}.metrics")
    for sample, label in figures.TOLD.items():
        family = sample.removesuffix("_bucket").removesuffix("_count")
        assert label in ("", "le") or label in metrics.DECLARED[family].labels, sample


def test_replicas_are_added_up_before_the_quantile_is_taken() -> None:
    # One replica is quick and one is slow: neither's own p95, nor their mean, is that of all requests.
    quick, slow = _told("grading", a=90, b=90, c=90, d=90), _told("grading", a=0, b=0, c=10, d=10)
    assert figures.quantile(0.95, quick.numbers) == pytest.approx(0.095)
    assert figures.quantile(0.95, slow.numbers) == pytest.approx(4.8)
    assert figures.quantile(0.95, figures.total([quick, slow])) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [(_told("x"), None), (_told("x", a=0, d=0), None), (_told("x", a=1, b=1, c=1, d=9), 5.0), (_told("x", d=9), 0.0)],
)
def test_what_was_not_measured_has_no_quantile_and_what_is_beyond_the_last_bound_is_told_as_it(
    told: Told, seconds: float | None
) -> None:
    assert figures.quantile(0.95, told.numbers) == seconds
