"""Fixtures of an instance that the tests of one file may break (registered by tests/e2e/conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from harness.client import Client
from harness.command_line import CommandLine
from harness.instance import Embedded


@pytest.fixture(scope="module")
def own_env() -> Mapping[str, str]:
    """Settings of the file's own instance; a file that needs some has a fixture of this name."""
    return {}


@pytest.fixture(scope="module")
def own(own_env: Mapping[str, str]) -> Iterator[Embedded]:
    """An instance that the tests of this file may break; each leaves it running."""
    with Embedded(own_env) as running:
        assert isinstance(running, Embedded)
        yield running


@pytest.fixture(scope="module")
def boss(own: Embedded) -> Iterator[Client]:
    """Its administrator, who waits for a part that restarts."""
    with Client(own.url, patience_seconds=30) as client:
        yield client.login("admin", own.admin_password)


@pytest.fixture(scope="module")
def korrigo(own: Embedded) -> Iterator[CommandLine]:
    """Its command line."""
    with CommandLine(own.env, own.home) as command_line:
        yield command_line
