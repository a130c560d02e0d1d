"""/metrics of a process that has no API: a worker, or a relay or sweeper of its own.

Only what the process and its pool count: gauges of the database are told by the rooms' APIs.
"""

from __future__ import annotations

from prometheus_client import start_http_server

from korrigo_kit.settings import HttpSettings, SettingsError
from korrigo_kit.telemetry import gauges, metrics


def serve(http: HttpSettings) -> None:
    """Serve /metrics on the configured port in a thread; nothing when there is none. Raises SettingsError."""
    if not http.metrics_port:
        return
    registry = metrics.process_registry()
    registry.register(metrics.CachedGauges(gauges.build))
    try:
        start_http_server(http.metrics_port, http.host, registry)
    except OSError as error:
        raise SettingsError(f"cannot listen on {http.host}:{http.metrics_port}: {error.strerror}") from None
