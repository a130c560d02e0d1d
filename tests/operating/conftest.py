"""One API server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.api_server import ApiServer
from harness.servers import MissingTool


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """A real API server with its etcd; where they were never built, that takes minutes."""
    try:
        server = ApiServer()
    except MissingTool as error:
        pytest.skip(f"SERVER MISSING: {error}")
    yield server
    server.stop()
