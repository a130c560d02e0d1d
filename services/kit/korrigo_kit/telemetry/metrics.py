"""The metrics that every room has, and how a process's /metrics is put together.

With PROMETHEUS_MULTIPROC_DIR set (the front door sets it in embedded mode and for workers) the samples of all
processes, pool children and dead ones included, are merged from files; otherwise the process's own registry
serves. Gauges that come from the database are collected at scrape time, at most every 10 seconds.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector

from korrigo_kit.errors import KorrigoError

log = logging.getLogger("korrigo.metrics")

GAUGE_CACHE_SECONDS = 10.0

# Up to 120 s, so that a p95 above 5 s can be told from one above 60 s (operations.md 1).
HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)

http_requests_total = Counter(
    "http_requests", "HTTP requests by route template and exact status.", ["method", "path", "status"]
)
http_request_duration_seconds = Histogram(
    "http_request_duration_seconds",
    "Time from the first byte of a request to the last of its answer.",
    ["method", "path", "status"],
    buckets=HTTP_BUCKETS,
)
rpc_requests_total = Counter("korrigo_rpc_requests", "gRPC calls served.", ["method", "status"])

GaugeSource = Callable[[], Iterable[GaugeMetricFamily]]


class CachedGauges(Collector):
    """Gauges computed at scrape time and kept for a while; a failing source leaves its series out."""

    def __init__(self, source: GaugeSource, seconds: float = GAUGE_CACHE_SECONDS) -> None:
        self._source = source
        self._seconds = seconds
        self._lock = threading.Lock()
        self._families: list[GaugeMetricFamily] = []
        self._read_at = -1e9

    def collect(self) -> Iterable[Metric]:
        """Return the families, computing them when they are too old."""
        with self._lock:
            if time.monotonic() - self._read_at > self._seconds:
                try:
                    self._families = list(self._source())
                except KorrigoError as error:
                    # Above all a database that is away: the process's own series must still be seen.
                    log.warning("gauges left out: %s", error.reason, extra={"reason": error.reason})
                    self._families = []
                self._read_at = time.monotonic()
            return list(self._families)

    def describe(self) -> Iterable[Metric]:
        """Describe nothing, so that registering never touches the database."""
        return []


def expose(gauges: Iterable[Collector]) -> bytes:
    """Render /metrics of this process (or of all, in multi-process mode) in the text format."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        text = generate_latest(registry)
    else:
        text = generate_latest(REGISTRY)
    own = CollectorRegistry()
    own.register(_Merged(gauges))
    return text + generate_latest(own)


class _Merged(Collector):
    """Families of one name from several rooms become one, because the text format knows each name once."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = tuple(collectors)

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for collector in self._collectors:
            for family in collector.collect():
                # A copy: the cached family must not grow with every scrape.
                whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                whole.samples.extend(family.samples)
        return merged.values()

    def describe(self) -> Iterable[Metric]:
        return []
