"""The servers of the harness do what the chaos test believes of them: kill keeps, wipe loses."""

from __future__ import annotations

import amqp
import obstore
import psycopg
import pytest
from obstore.exceptions import AlreadyExistsError

from harness.servers import S3, Postgres, RabbitMQ

QUORUM = {"x-queue-type": "quorum"}


def test_postgres_keeps_a_commit_over_sigkill(postgres_server: Postgres) -> None:
    url = postgres_server.url(postgres_server.create_database())
    with psycopg.connect(url) as connection:
        connection.execute("create table kept (n int)")
        connection.execute("insert into kept values (7)")
    postgres_server.restart()
    with psycopg.connect(url) as connection:
        assert connection.execute("select n from kept").fetchall() == [(7,)]


def test_rabbitmq_keeps_a_confirmed_message_over_sigkill_and_loses_it_by_wipe(rabbitmq_server: RabbitMQ) -> None:
    def publish() -> None:
        with rabbitmq_server.connect() as connection:
            channel = connection.channel()
            channel.queue_declare("kept", durable=True, auto_delete=False, arguments=QUORUM)
            channel.basic_publish_confirm(amqp.Message("hello", delivery_mode=2), routing_key="kept")

    publish()
    rabbitmq_server.wait_until_durable("kept")
    rabbitmq_server.restart()
    with rabbitmq_server.connect() as connection:
        message = connection.channel().basic_get("kept")
        assert message is not None and message.body == "hello"
    publish()
    rabbitmq_server.wipe()
    with rabbitmq_server.connect() as connection, pytest.raises(amqp.NotFound):
        connection.channel().queue_declare("kept", passive=True)


def test_s3_put_get_range_and_conditional(s3_server: S3) -> None:
    store = s3_server.store()
    obstore.put(store, "cas/aa/one", b"0123456789", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "cas/aa/one", b"other", mode="create")
    s3_server.restart()
    assert obstore.get(store, "cas/aa/one").bytes() == b"0123456789"
    assert obstore.get_range(store, "cas/aa/one", start=2, end=5) == b"234"
