"""The broker: rings for jobs and carries events. It is never the authority; losing all of it loses nothing.

RabbitMQ (amqp://) with quorum queues and publisher confirms, or the database itself (pgmq://) in embedded mode.
Neither ETA nor countdown is used: `not_before` is in the job row and the sweeper rings.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import kombu
import sqlalchemy
from kombu.exceptions import OperationalError as KombuOperationalError

from korrigo_kit.auth import accepted_secrets
from korrigo_kit.errors import Unauthenticated, Unavailable
from korrigo_kit.settings import DatabaseSettings, RpcSettings, Settings
from korrigo_protos.common.v1 import event_pb2

log = logging.getLogger("korrigo.broker")

EVENTS = kombu.Exchange("korrigo.events", type="topic", durable=True)
# Redelivery of an unacknowledged pgmq message; jobs and inbox make a second delivery harmless.
VISIBILITY_SECONDS = 60


def is_pgmq(settings: Settings) -> bool:
    """Tell whether the database serves as the broker."""
    return settings.broker.url.get_secret_value().startswith("pgmq")


def broker_url(settings: Settings) -> str:
    """Return the URL for kombu and Celery."""
    # The host name is never used (conn_string decides); without one kombu warns at every connection.
    return "pgmq://localhost" if is_pgmq(settings) else settings.broker.url.get_secret_value()


def transport(settings: Settings) -> str | None:
    """Return the class that kombu and Celery talk by; None = the one of the URL."""
    return "korrigo_kit.pgmq_transport:Transport" if is_pgmq(settings) else None


def transport_options(settings: Settings) -> dict[str, Any]:
    """Return kombu's transport options for the configured broker."""
    if not is_pgmq(settings):
        return {
            "confirm_publish": True,
            "max_retries": 3,
            "interval_start": 0.1,
            "interval_step": 0.2,
            "interval_max": 1.0,
            "connect_timeout": 5,
        }
    return {
        # kombu's pgmq transport wants key=value form; a URL with ?host= makes it wait 30 s and fail.
        "conn_string": pgmq_conninfo(settings),
        "init_extension": False,
        "use_notify": True,
        "notify_throttle_interval_ms": 0,
        # Long polling would block one queue after the other; NOTIFY wakes instead. The interval is also the pause
        # after a poll that found the prefetch window full, so it bounds the throughput of short jobs.
        "wait_time_seconds": 0,
        "polling_interval": 0.2,
        "visibility_timeout": VISIBILITY_SECONDS,
        "pool_size": 4,
        "pool_timeout": 5,
    }


def pgmq_conninfo(settings: Settings) -> str:
    """Return the connection string of the database that serves as the broker."""
    from korrigo_kit.credentials import room_url

    given = settings.broker.url.get_secret_value().removeprefix("pgmq://")
    url = f"postgresql://{given}" if given else room_url(settings.watched(DatabaseSettings).now(), "broker")
    parsed = sqlalchemy.make_url(url)
    host = parsed.host or str(parsed.query.get("host", ""))
    parts = {
        "host": host,
        "port": str(parsed.port or parsed.query.get("port", "5432")),
        "dbname": str(parsed.database or ""),
        "user": str(parsed.username or ""),
        "password": str(parsed.password or ""),
        "connect_timeout": "3",
        "application_name": "korrigo:broker",
    }
    return " ".join(f"{key}='{value}'" for key, value in parts.items() if value)


def connection(settings: Settings) -> kombu.Connection:
    """Make a kombu connection; it connects when first used."""
    return kombu.Connection(
        broker_url(settings),
        transport=transport(settings),
        transport_options=transport_options(settings),
        heartbeat=10,
        connect_timeout=5,
    )


def event_queue(room: str, routing_keys: Iterable[str]) -> kombu.Queue:
    """Declare what a room hears: one durable queue, bound by its subscriptions."""
    return kombu.Queue(
        f"events.{room}",
        bindings=[kombu.binding(EVENTS, routing_key=key) for key in sorted(set(routing_keys))],
        durable=True,
        queue_arguments=quorum_arguments(),
    )


def job_queue(room: str) -> kombu.Queue:
    """Declare the queue of a room's bells."""
    name = f"jobs.{room}"
    return kombu.Queue(
        name,
        kombu.Exchange("korrigo.jobs", type="direct", durable=True),
        routing_key=name,
        durable=True,
        queue_arguments=quorum_arguments(),
    )


def quorum_arguments() -> dict[str, Any]:
    """Arguments of a quorum queue; an explicit delivery limit, because the default differs between releases.

    A message past the limit is dropped: it was only a bell or a copy of an outbox row.
    """
    return {"x-queue-type": "quorum", "x-delivery-limit": 20}


class EventPublisher:
    """Publishes events with confirms; one per relay thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = connection(settings)
        self._producer: kombu.Producer | None = None

    def publish(self, events: Iterable[event_pb2.Event]) -> None:
        """Publish events in order; returns when the broker has confirmed all; raises Unavailable."""
        try:
            if self._producer is None:
                self._producer = kombu.Producer(self._connection.default_channel, exchange=EVENTS, auto_declare=True)
            for event in events:
                self._producer.publish(
                    encode(self._settings, event),
                    routing_key=f"{event.source}.{event.type}",
                    serializer="json",
                    delivery_mode=2,
                    # No headers: kombu's pgmq transport calls send_topic in a form that pgmq lacks when there are
                    # any (kombu 5.7.0), and the event itself carries request id and trace.
                    timeout=5,
                    confirm_timeout=5,
                )
        except Exception as error:
            self.close()
            raise Unavailable("BROKER_UNAVAILABLE", "the broker did not take an event") from error

    def close(self) -> None:
        """Drop the connection; the next publish opens a new one."""
        self._producer = None
        try:
            self._connection.release()
        except Exception:  # a dead connection may fail to close in any way
            log.debug("broker connection did not close cleanly", exc_info=True)
        # Made anew, not cloned: the password may be another one by now.
        self._connection = connection(self._settings)


def encode(settings: Settings, event: event_pb2.Event) -> dict[str, str]:
    """Wrap an event as a JSON message, sealed with the secret that the rooms share."""
    data = event.SerializeToString()
    secret = accepted_secrets(settings.watched(RpcSettings).now())[0]
    return {"event": base64.b64encode(data).decode(), "seal": _seal(secret, data)}


def decode(settings: Settings, body: Mapping[str, str]) -> event_pb2.Event:
    """Read an event from a JSON message; raises Unauthenticated FOREIGN_EVENT.

    Two installations on one virtual host take each other's events: applied, they would make jobs about copies
    that this installation does not have, and tell the other that its copies failed.
    """
    data, seal = base64.b64decode(body["event"]), body.get("seal", "")
    watched = settings.watched(RpcSettings)
    known = watched.now()
    if not _is_sealed(known, data, seal):
        newer = watched.newer(known)
        if newer is not None and _is_sealed(newer, data, seal):
            return event_pb2.Event.FromString(data)
        raise Unauthenticated("FOREIGN_EVENT", "an event of another installation, or a forged one")
    return event_pb2.Event.FromString(data)


def _is_sealed(settings: RpcSettings, data: bytes, seal: str) -> bool:
    # The previous secret too, while the rooms change from one to the other.
    return any(hmac.compare_digest(_seal(secret, data), seal) for secret in accepted_secrets(settings))


def _seal(secret: str, data: bytes) -> str:
    return hmac.new(secret.encode(), b"korrigo event\n" + data, hashlib.sha256).hexdigest()


__all__ = ["EVENTS", "EventPublisher", "KombuOperationalError", "connection", "decode", "encode", "event_queue"]
