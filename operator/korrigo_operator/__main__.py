"""`python -m korrigo_operator`: runs until SIGTERM. Wiring only."""

from __future__ import annotations

import logging
import socket
import sys

from prometheus_client import REGISTRY

from korrigo_kit.rpc import Channels
from korrigo_kit.settings import SettingsError, load
from korrigo_kit.telemetry import endpoint, logs
from korrigo_kit.telemetry.metrics import CachedGauges
from korrigo_operator import handlers, metrics, settings
from korrigo_operator.asking import Rooms
from korrigo_operator.cluster import Cluster, find_access
from korrigo_operator.election import Election

_HOPELESS = 78  # sysexits.h EX_CONFIG: another try cannot help


def main() -> int:
    """Run the operator; 78 when the settings are wrong."""
    try:
        given = load(settings.SECTIONS, elsewhere=settings.ELSEWHERE)
        own = given.get(settings.OperatorSettings)
        logs.configure("operator", given.log.level, given.log.directory)
        # A line for every change of every object, with all of kopf's settings in it.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        access = find_access(own.namespace)
        state = metrics.State()
        REGISTRY.register(CachedGauges(state.gauges, seconds=1))
        endpoint.serve(given.http)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the log may not be set up yet
        return _HOPELESS
    cluster = Cluster(access)
    election = Election(cluster, own.identity or socket.gethostname(), own.lease_seconds)
    loop = handlers.Loop(cluster, Rooms(Channels(given.rpc, "operator")), election, own.runbooks_url, state)
    handlers.run(loop, access, own.liveness)
    return 0


if __name__ == "__main__":
    sys.exit(main())
