"""Fixtures of running products, for the e2e and chaos tests (registered by their conftest files)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest

from harness.client import Client
from harness.instance import Embedded, Instance
from harness.production import Production

MakeUser = Callable[..., Client]


@pytest.fixture(scope="session", params=["embedded", "production"])
def instance(request: pytest.FixtureRequest) -> Iterator[Instance]:
    """A running product, once per session and mode; tests must not break it."""
    made: Instance
    if request.param == "embedded":
        made = Embedded()
    else:
        servers = [request.getfixturevalue(f"{name}_server") for name in ("postgres", "rabbitmq", "s3")]
        made = Production(*servers)
    with made as running:
        yield running


@pytest.fixture(scope="session")
def admin(instance: Instance) -> Iterator[Client]:
    """The administrator's session."""
    with Client(instance.url, patience_seconds=20) as client:
        yield client.login("admin", instance.admin_password)


@pytest.fixture
def make_user(instance: Instance, admin: Client) -> Iterator[MakeUser]:
    """Make an account with the given roles and log it in; `client.user["id"]` is its id."""
    clients: list[Client] = []

    def make(*roles: str, name: str = "") -> Client:
        username = name or f"{roles[0]}-{secrets.token_hex(4)}"
        password = secrets.token_urlsafe(16)
        admin.create_user(username, password, roles)
        clients.append(Client(instance.url, patience_seconds=20).login(username, password))
        return clients[-1]

    yield make
    for client in clients:
        client.http.close()


@pytest.fixture
def fresh() -> Iterator[Embedded]:
    """An embedded instance of the test's own, not yet started."""
    made = Embedded()
    yield made
    made.stop()
