"""kombu's transport over pgmq, made to leave nothing behind when the database lets it in no more.

kombu (5.7.0) closes what was established only. An attempt that is refused leaves a pool whose threads go on connecting
for five minutes; a relay tries every two seconds, so a broker that was away for ten minutes took the whole database
along, by the mere number of connections. Named by `broker.transport`, so that the relay, the sweeper and the workers
all use it.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import pgmq


class Transport(pgmq.Transport):  # type: ignore[misc]  # kombu has no types
    """PostgreSQL as a broker."""

    def establish_connection(self) -> Any:
        """Connect; closes its pool when that fails. Raises what the driver says."""
        try:
            return super().establish_connection()
        except BaseException:
            self.close_connection(self)
            raise
