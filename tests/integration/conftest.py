"""One installation of all rooms and a caller's side of the wire, for the modules that order interventions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.servers import Postgres
from harness.whole_rooms import WholeRooms
from korrigo_kit.rpc import Channels


@pytest.fixture(scope="module")
def rooms(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeRooms]:
    """One installation for all tests of a module; each makes its own copies and scans."""
    made = WholeRooms(postgres_server, tmp_path_factory.mktemp("whole"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def channels(rooms: WholeRooms) -> Iterator[Channels]:
    """The command line's side of the wire."""
    opened = Channels(rooms.settings.rpc, "cli")
    yield opened
    opened.close()
