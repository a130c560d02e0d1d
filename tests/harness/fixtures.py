"""Session fixtures of the real servers; tests take them by name.

A missing program skips the test with a loud reason; in CI tests/conftest.py turns that skip into a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from harness.servers import S3, MissingTool, Postgres, RabbitMQ

Server = TypeVar("Server", Postgres, RabbitMQ, S3)


def _run(make: Callable[[], Server]) -> Iterator[Server]:
    try:
        server = make()
    except MissingTool as error:
        pytest.skip(f"SERVER MISSING: {error}")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server; tests make databases of their own in it."""
    yield from _run(Postgres)


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ]:
    """A RabbitMQ node."""
    yield from _run(RabbitMQ)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """An S3 server with one bucket."""
    yield from _run(S3)


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of the test's own, to be killed."""
    yield from _run(Postgres)


@pytest.fixture
def own_rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ node of the test's own: two installations on one virtual host would take each other's messages."""
    yield from _run(RabbitMQ)
