"""Metrics are what the contract says, count once whatever dies, and gauges fall when they should."""

from __future__ import annotations

import ast
import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest

import korrigo_audit.metrics
import korrigo_grading.metrics
import korrigo_ingest.metrics
import korrigo_operator.metrics
from harness.scrapes import CONTRACT, OPERATOR, Scrape
from korrigo_kit.rest import edge
from korrigo_kit.telemetry import gauges, metrics

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("services", "operator") for path in (ROOT / folder).rglob("*.py")]
ROOMS = (korrigo_ingest.metrics, korrigo_grading.metrics, korrigo_audit.metrics, gauges, korrigo_operator.metrics)


# ----------------------------------------------------------------------------------------------- the contract
def test_what_is_declared_is_the_contract() -> None:
    declared = {m.name: (m.kind, tuple(m.labels), m.buckets) for m in metrics.DECLARED.values()}
    assert declared == CONTRACT | OPERATOR
    assert all(m.text.endswith(".") and "  " not in m.text for m in metrics.DECLARED.values())


def test_nothing_is_measured_without_a_declaration() -> None:
    """Only kit.telemetry touches the library's classes, so every name passes through a declaration."""
    forbidden = {"Counter", "Histogram", "Gauge", "Summary", "Info", "Enum", "GaugeMetricFamily", "CounterMetricFamily"}
    found = []
    for path in SOURCES:
        if path.parent.name == "telemetry":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prometheus_client"):
                found += [f"{path.name}: {name.name}" for name in node.names if name.name in forbidden]
    assert not found


def test_a_name_is_declared_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        metrics.counter("grading_ocr_errors_total", "Again.")


def test_known_label_sets_are_there_from_the_start() -> None:
    script = (
        "import korrigo_ingest.metrics, korrigo_grading.metrics, korrigo_operator.metrics\n"
        "from korrigo_kit.telemetry.metrics import expose\nprint(expose([]).decode())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    page = Scrape(done.stdout)
    missing = [
        (declared.name, values)
        for declared in metrics.DECLARED.values()
        if declared.kind != "gauge" and declared.labels
        for values in declared.known_label_sets()
        if page.numbers.get(
            (
                declared.name + ("_count" if declared.kind == "histogram" else ""),
                frozenset(zip(declared.labels, values, strict=True)),
            )
        )
        != 0
    ]
    assert not missing
    assert page.get("grading_login_failures_total") == 0


# ----------------------------------------------------------------------------------------------- HTTP
def _answers(*requests: tuple[str, str]) -> list[int]:
    """Send requests to an app with one route, behind the edge; returns the codes."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    def item(item_id: str) -> str:
        if item_id == "broken":
            raise RuntimeError("as asked")
        return item_id

    app.add_middleware(edge.Edge, hosts=None, service="test")

    async def send() -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [(await client.request(method, path)).status_code for method, path in requests]

    return asyncio.run(send())


def _requests() -> Scrape:
    return Scrape(generate_latest(metrics.process_registry()).decode())


def test_paths_are_templates_and_strangers_make_no_series(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    before = _requests()
    for number in range(30):
        asked = (("GET", f"/items/{number}"), ("GET", f"/nowhere/{number}"), (f"STRANGE{number}", "/nowhere"))
        assert _answers(*asked) == [200, 404, 404]
    after = _requests()
    new = {labels for labels in after.of("http_requests_total") if labels not in before.of("http_requests_total")}
    assert {dict(labels)["path"] for labels in new} <= {"/items/{item_id}", "unmatched"}
    assert after.get("http_requests_total", method="GET", path="/items/{item_id}", status="200") == 30
    assert {dict(labels)["method"] for labels in new} <= {"GET", "OTHER"} and len(new) <= 3


def test_an_exception_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    labels = {"method": "GET", "path": "/items/{item_id}", "status": "500"}
    for count in (1, 2):
        assert _answers(("GET", "/items/broken")) == [500]
        page = _requests()
        assert page.get("http_requests_total", **labels) == count
        assert page.get("http_request_duration_seconds_count", **labels) == count
