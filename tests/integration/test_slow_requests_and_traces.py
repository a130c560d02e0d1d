"""What takes long says so in the log, and spans reach a real OTLP receiver in one trace."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from korrigo_kit.rest import edge

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
# As a process does it: configured after the spawn, a request, a call and a job of it, and a clean end.
WORK = f"""
import sys
from korrigo_kit import context
from korrigo_kit.settings import OtelSettings
from korrigo_kit.telemetry import traces
traces.configure("grading", OtelSettings(endpoint=sys.argv[1]))
with context.bind(traceparent=traces.accept("00-{TRACE}-{PARENT}-01")):
    with traces.span("POST api"), traces.span("/ingest/GetScan"):
        handed_on = context.get("traceparent")
with context.bind(traceparent=handed_on), traces.span("job import"):
    print(context.get("traceparent").split("-")[1])
"""


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.heard: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(  # noqa: N802 - the protocol's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.heard.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """A collector on a free port, and its address."""
    servicer = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(0)


def _work(endpoint: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WORK, endpoint], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_spans_of_one_request_reach_the_collector_in_one_trace(receiver: tuple[Receiver, str]) -> None:
    servicer, endpoint = receiver
    assert _work(endpoint) == TRACE
    resources = [resource for request in servicer.heard for resource in request.resource_spans]
    names = {a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"}
    assert names == {"korrigo-grading"}
    spans = {span.name: span for r in resources for scope in r.scope_spans for span in scope.spans}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans["POST api"].parent_span_id.hex() == PARENT
    assert spans["/ingest/GetScan"].parent_span_id == spans["POST api"].span_id
    assert spans["job import"].parent_span_id == spans["/ingest/GetScan"].span_id


def test_a_request_over_five_seconds_is_warned_of_but_a_stream_is_not(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/api/exams/{exam_id}")
    @app.get("/api/scans/{exam_id}/events")
    async def slow(exam_id: str) -> str:
        await asyncio.sleep(edge.SLOW_SECONDS + 0.1)
        return exam_id

    @app.get("/api/me")
    async def quick() -> str:
        return "me"

    async def ask() -> None:
        wrapped = edge.Edge(app, hosts=None, service="grading")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://x") as client:
            paths = ("/api/exams/e1", "/api/scans/s1/events", "/api/me")
            await asyncio.gather(*(client.get(path, timeout=60) for path in paths))

    with caplog.at_level(logging.WARNING, "metrics"):
        asyncio.run(ask())
    (record,) = [record for record in caplog.records if record.name == "metrics"]
    # the template, never the path itself: it may hold what a person typed
    line = r"Slow request detected: GET /api/exams/\{exam_id\} took \d+\.\d\ds \(status 200\)"
    assert re.fullmatch(line, record.getMessage()) and record.levelname == "WARNING"
    assert edge.SLOW_SECONDS == 5
