"""What the chart's NetworkPolicies allow, compared with what pods really said to each other.

The network of the test cluster enforces no policy, so nothing is refused there: `Watch` writes down every connection
while the stories run, and `Policies` answers, as an enforcing network would, whether each would have been let through
(https://kubernetes.io/docs/concepts/services-networking/network-policies/). Pods are told apart by what they are and
not by their names: `korrigo/grading`, `korrigo-services/postgresql`, and the node's own `dns` and `kubernetes`.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from cluster import backing
from cluster.connections import edges_seen
from cluster.installation import NAMESPACE, Installation
from cluster.kube import Json, Kube
from cluster.node import Node
from cluster.plan import API_PORT, DNS_PORT, NODE_ADDRESS

SAMPLE_SECONDS = 10
NODE_PORTS = {DNS_PORT: "dns", API_PORT: "kubernetes"}
# one line for each change of a pod: what it is, where it is, what it listens on; not between tabs, which kubectl turns
# into spaces (no name, label or port holds this sign)
_BETWEEN = "|"
_COLUMNS = _BETWEEN.join(
    ["jsonpath={.metadata.namespace}", "{.status.podIP}", "{.metadata.labels}", "{.spec.containers[*].ports}{'\\n'}"]
)


@dataclass(frozen=True)
class Party:
    """One kind of pod; those of one Deployment are one party."""

    namespace: str
    labels: tuple[tuple[str, str], ...]
    # (name, number)
    ports: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """What it is called in answers."""
        labels = dict(self.labels)
        kind = labels.get("app.kubernetes.io/component") or labels.get("app") or labels.get("app.kubernetes.io/name")
        return f"{self.namespace}/{kind or '?'}"


@dataclass(frozen=True, order=True)
class Spoken:
    """Who opened a connection to whom, and to which port."""

    source: str
    target: str
    port: int


@dataclass
class Watch:
    """Writes down, as long as it is entered, which parties there are and who spoke with whom."""

    node: Node
    kube: Kube
    parties: dict[str, Party] = field(default_factory=dict)
    spoken: set[Spoken] = field(default_factory=set)
    # addresses whose pods were gone before they were known; with what they said
    unknown: set[str] = field(default_factory=set)
    _by_address: dict[str, Party] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        argv, environment = self.kube.argv("kubectl", "get", "pods", "-A", "--watch", "-o", _COLUMNS)
        self._pods = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
        self._threads = [threading.Thread(target=body, daemon=True) for body in (self._hear, self._sample)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pods.kill()
        self._pods.wait()
        for thread in self._threads:
            thread.join(30)
        assert self._pods.stdout is not None
        self._pods.stdout.close()

    def _hear(self) -> None:
        assert self._pods.stdout is not None
        for line in self._pods.stdout:
            columns = line.rstrip("\n").split(_BETWEEN)
            if len(columns) == 4 and columns[1]:
                self._know(*columns)

    def _know(self, namespace: str, address: str, labels: str, ports: str) -> None:
        party = Party(
            namespace,
            tuple(sorted(json.loads(labels or "{}").items())),
            tuple(sorted((port.get("name", ""), port["containerPort"]) for port in _port_lists(ports))),
        )
        with self._guard:
            self._by_address[address] = party
            self.parties[party.name] = party

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.look()

    def look(self) -> None:
        """Take down what the connection table holds now (an entry outlives its connection by two minutes)."""
        with self._guard:
            known = dict(self._by_address)
        for edge in edges_seen(self.node):
            source = known.get(edge.source)
            if source is None:
                if edge.source.startswith("10.242."):
                    self.unknown.add(edge.source)
                continue
            target = known.get(edge.target)
            name = target.name if target else NODE_PORTS.get(edge.port, "") if edge.target == NODE_ADDRESS else ""
            self.spoken.add(Spoken(source.name, name or edge.target, edge.port))


def _port_lists(text: str) -> Iterator[Json]:
    """Read the lists of ports that kubectl wrote one after another."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        found, end = decoder.raw_decode(rest)
        yield from found
        rest = rest[end:].strip()


class Policies:
    """The NetworkPolicies of the product's namespace, asked about parties."""

    def __init__(self, installation: Installation) -> None:
        self._policies = installation.items("networkpolicies")
        found = installation.kube.items("namespaces")
        self._namespaces = {one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in found}

    def allow(self, source: Party | None, target: Party | None, port: int) -> bool:
        """Tell whether a connection passes; None is a process of the node, which no selector meets."""
        may_leave = self._side("Egress", source, target, target, port)
        return may_leave and self._side("Ingress", target, source, target, port)

    def _side(self, direction: str, own: Party | None, other: Party | None, target: Party | None, port: int) -> bool:
        if own is None or own.namespace != NAMESPACE:
            return True
        selecting = [
            policy["spec"]
            for policy in self._policies
            if direction in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], dict(own.labels))
        ]
        key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
        rules = [rule for spec in selecting for rule in spec.get(key) or []]
        if not selecting:
            return True
        return any(self._has_port(rule, target, port) and self._has_peer(rule.get(peers), other) for rule in rules)

    @staticmethod
    def _has_port(rule: Json, target: Party | None, port: int) -> bool:
        if not rule.get("ports"):
            return True
        named = dict(target.ports) if target else {}
        return any(named.get(wanted["port"], wanted["port"]) == port for wanted in rule["ports"])

    def _has_peer(self, peers: list[Json] | None, other: Party | None) -> bool:
        if not peers:
            return True
        return other is not None and any(self._is(peer, other) for peer in peers)

    def _is(self, peer: Json, party: Party) -> bool:
        if "namespaceSelector" in peer:
            if not _selects(peer["namespaceSelector"], self._namespaces.get(party.namespace, {})):
                return False
        elif party.namespace != NAMESPACE:
            return False
        return "podSelector" not in peer or _selects(peer["podSelector"], dict(party.labels))


def _selects(selector: Json, labels: dict[str, str]) -> bool:
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return equal and all(_meets(wanted, labels) for wanted in selector.get("matchExpressions", []))


def _meets(wanted: dict[str, Any], labels: dict[str, str]) -> bool:
    value = labels.get(wanted["key"])
    if wanted["operator"] == "In":
        return value in wanted["values"]
    if wanted["operator"] == "NotIn":
        return value not in wanted["values"]
    return (value is not None) is (wanted["operator"] == "Exists")


def possible(parties: Iterable[Party]) -> Iterator[tuple[Party, Party | None, int, Spoken]]:
    """Yield every connection there could be between two parties, one of them of the product."""
    known = [party for party in parties if party.namespace in (NAMESPACE, backing.NAMESPACE)]
    for source in known:
        for target in known:
            if NAMESPACE in (source.namespace, target.namespace):
                for _, port in target.ports:
                    yield source, target, port, Spoken(source.name, target.name, port)
        if source.namespace == NAMESPACE:
            for port, name in NODE_PORTS.items():
                yield source, None, port, Spoken(source.name, name, port)
