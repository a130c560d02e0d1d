"""W3C trace context: taken from the caller, handed on over gRPC, events and jobs; exported when configured."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from korrigo_kit import context
from korrigo_kit.settings import OtelSettings

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def accept(offered: str | None) -> str:
    """Keep a valid traceparent from a client, or begin a new trace."""
    if offered and _TRACEPARENT.fullmatch(offered):
        return offered
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def configure(service: str, settings: OtelSettings) -> None:
    """Export spans by OTLP when an endpoint is set; call after the process was spawned."""
    if not settings.endpoint:
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"korrigo-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint, insecure=True)))
    trace.set_tracer_provider(provider)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Run a block in a span that continues the context's trace, and make it the context's parent.

    Costs nothing but a dictionary look-up when no exporter is configured: opentelemetry's API is a no-op then.
    """
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    parent = propagator.extract({"traceparent": context.get("traceparent") or ""})
    with trace.get_tracer("korrigo").start_as_current_span(name, context=parent):
        carrier: dict[str, str] = {}
        propagator.inject(carrier)
        with context.bind(traceparent=carrier.get("traceparent") or context.get("traceparent")):
            yield
