"""Who spoke with whom in the cluster, read from the node's connection table.

Pods are joined point to point, so every packet between them is routed by the node and counted here, whatever policy
exists: the chart's NetworkPolicies, which this network does not enforce, are compared with what really happened.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from cluster.node import Node

# original direction first, then the answer's; an entry outlives its connection by about two minutes
_LINE = re.compile(
    r"^ipv4\s+2\s+(?P<protocol>tcp|udp)\s.*?"
    r"src=(?P<source>\S+) dst=\S+ sport=\d+ dport=\d+ .*?src=(?P<target>\S+) dst=\S+ sport=(?P<port>\d+) "
)


@dataclass(frozen=True, order=True)
class Edge:
    """One direction of speaking: who opened, who answered (behind a Service: the pod itself) and on which port."""

    source: str
    target: str
    port: int
    protocol: str


def edges_seen(node: Node) -> set[Edge]:
    """Return the edges in the table now; to see all of a story, ask at least once a minute while it runs."""
    table = subprocess.run(
        node.inside("cat", "/proc/net/nf_conntrack"), capture_output=True, text=True, check=True
    ).stdout
    found = (_LINE.match(line) for line in table.splitlines())
    return {Edge(hit["source"], hit["target"], int(hit["port"]), hit["protocol"]) for hit in found if hit}
