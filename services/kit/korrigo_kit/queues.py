"""How many messages wait in the broker's queues; None when the broker does not answer. Asked by /metrics."""

from __future__ import annotations

import base64
import json
import logging
import urllib.request
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

import kombu
import psycopg
from kombu.exceptions import ChannelError
from psycopg import sql

from korrigo_kit import broker
from korrigo_kit.settings import Settings

log = logging.getLogger("korrigo.broker")

# Below the time that a scrape may take.
_PATIENCE_SECONDS = 2
# (queue, "ready" or "unacked") -> messages.
Lengths = dict[tuple[str, ...], int]


def lengths(settings: Settings, queues: Sequence[str]) -> Lengths | None:
    """Count the messages of these queues; a queue that nobody declared yet has none."""
    try:
        return _pgmq(settings, queues) if broker.is_pgmq(settings) else _rabbitmq(settings, queues)
    except (psycopg.Error, OSError, kombu.exceptions.OperationalError) as error:
        log.debug("the broker did not answer: %s", type(error).__name__)
        return None


def _pgmq(settings: Settings, queues: Sequence[str]) -> Lengths:
    found: Lengths = {(queue, state): 0 for queue in queues for state in ("ready", "unacked")}
    # kombu replaces what pgmq does not take in a name.
    named = {queue.replace(".", "_"): queue for queue in queues}
    with psycopg.connect(broker.pgmq_conninfo(settings)) as connection:
        rows = connection.execute("SELECT queue_name FROM pgmq.meta WHERE queue_name = ANY(%s)", (list(named),))
        for (name,) in rows.fetchall():
            counted = connection.execute(
                sql.SQL(
                    "SELECT count(*) FILTER (WHERE vt <= clock_timestamp()),"
                    " count(*) FILTER (WHERE vt > clock_timestamp()) FROM {}"
                ).format(sql.Identifier("pgmq", f"q_{name}"))
            ).fetchone()
            found[named[name], "ready"], found[named[name], "unacked"] = counted or (0, 0)
    return found


def _rabbitmq(settings: Settings, queues: Sequence[str]) -> Lengths:
    found: Lengths = {(queue, "ready"): 0 for queue in queues}
    declared = []
    with kombu.Connection(broker.broker_url(settings), connect_timeout=_PATIENCE_SECONDS) as connection:
        for queue in queues:
            with connection.channel() as channel:  # a refused declaration costs the channel
                try:
                    found[queue, "ready"] = channel.queue_declare(queue, passive=True).message_count
                    declared.append(queue)
                except (ChannelError, *connection.channel_errors):
                    log.debug("nobody has declared queue %s", queue)
    if settings.broker.management_url is not None:
        found |= {(queue, "unacked"): _unacked(settings, queue) if queue in declared else 0 for queue in queues}
    return found


def _unacked(settings: Settings, queue: str) -> int:
    assert settings.broker.management_url is not None
    given = urlsplit(settings.broker.management_url.get_secret_value())
    host = urlsplit(settings.broker.url.get_secret_value()).path.removeprefix("/") or "/"
    address = f"{given.scheme}://{given.netloc.rpartition('@')[2]}{given.path.rstrip('/')}"
    request = urllib.request.Request(f"{address}/api/queues/{quote(host, safe='')}/{quote(queue, safe='')}")  # noqa: S310 - given by the operator
    if given.username:
        token = base64.b64encode(f"{given.username}:{given.password or ''}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310 - as above
            return int(json.load(answer).get("messages_unacknowledged", 0))
    except (OSError, ValueError):
        log.warning("the broker's management API did not tell of queue %s", queue)
        return 0
