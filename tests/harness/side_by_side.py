"""How tests are shared out when two processes run them: `make test SIDE_BY_SIDE="-n 2"`.

A file stays with one process, so that what its tests share is made once. The end-to-end tests that share the running
product stay together too, one process for each mode, and so do all tests of the one cluster. Everything else a test
needs (servers, homes, ports) is its own process's, and no test may look for what another one could have made.
"""

from __future__ import annotations

import re
from typing import Any

from xdist.scheduler import LoadScopeScheduling

# The parameter of the fixture `instance` comes first in the name of a test.
_MODE = re.compile(r"\[(embedded|production)\b")


class FilesAndModes(LoadScopeScheduling):  # type: ignore[misc]
    """See the module."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """Name what must stay together with a test."""
    path = nodeid.partition("::")[0]
    if "/cluster/" in f"/{path}":
        return "the cluster"
    mode = _MODE.search(nodeid)
    return f"the {mode[1]} instance" if mode and "/e2e/" in f"/{path}" else path


def scheduler(config: Any, log: Any) -> FilesAndModes:
    """Make the scheduler in the order of collection: quick and narrow first."""
    config.option.loadscopereorder = False
    return FilesAndModes(config, log)
