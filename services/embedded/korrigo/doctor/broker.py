"""The broker: away, or not heard."""

from __future__ import annotations

from urllib.parse import urlsplit

from korrigo.doctor.causes import SEEN, Blind, Cause, Found, Remedy
from korrigo.doctor.lines import quote
from korrigo.doctor.patient import Patient


def _broker_down(patient: Patient) -> Found | None:
    if patient.queue_lengths is not None:
        return None
    url = patient.settings.broker.url.get_secret_value()
    if url.startswith("pgmq") and not patient.is_database_up:
        raise Blind("the database, which holds the queues, does not answer")
    address = urlsplit(url)
    where = f"{address.scheme}://{address.hostname or ''}{f':{address.port}' if address.port else ''}"
    said = patient.lines.having("BROKER_UNAVAILABLE", "BROKER_DOWN")
    return Found(SEEN + 0.08, (f"the broker at {where} does not answer", *(quote(line) for line in said[-2:])))


CAUSES = (
    Cause(
        "broker-down",
        "The broker does not answer",
        ("broker", "import-stuck", "finalization-failing", "missing-audit-events", "high-latency", "monitoring"),
        _broker_down,
        (
            Remedy("systemctl start rabbitmq-server", "Start the broker; nothing is lost, rows are rung for again.",
                   "systemctl status rabbitmq-server", "production"),
            Remedy("korrigo migrate", "Install the queues in the database again.",
                   "korrigo migrate --dry-run", "embedded"),
            Remedy("korrigo queue status", "Afterwards: see that it drains."),
        ),
        "broker-down",
    ),
)  # fmt: skip
