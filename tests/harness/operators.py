"""The operator as a process of its own, against a real API server and real rooms, with no more rights than its Role.

The Role's rules are read from operator/README.md, from where the chart has them too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from harness.api_server import ApiServer, Document
from harness.processes import Child, clean_environment, free_port, wait_for
from harness.whole_rooms import WholeRooms
from korrigo_operator import crds

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "korrigo"
USER = "korrigo-operator"
# The machine may be busy with everything else.
SECONDS = 300.0
T = TypeVar("T")


def role_rules() -> list[Document]:
    """Return the rules of the operator's Role as its README tells them."""
    (block,) = re.findall(
        r"## What its Role allows.*?```yaml\n(.*?)```", (ROOT / "operator/README.md").read_text(), re.S
    )
    rules: list[Document] = yaml.safe_load(block)
    return rules


class Operators:
    """A namespace with the definitions, the Role, and operators started one by one."""

    def __init__(self, api: ApiServer, rooms: WholeRooms) -> None:
        self.api = api
        self.rooms = rooms
        self.running: list[Child] = []
        self._number = 0
        # an operator leaves nothing behind, whenever it is killed
        self.temporary = api.folder / "operators-tmp"
        self.temporary.mkdir()
        for path in crds.generated():
            api.kubectl("apply", "--server-side", "-f", str(path))
        api.kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", "--all")
        self.make_namespace()
        self._kubeconfig = api.user(USER, namespace=NAMESPACE)

    def make_namespace(self) -> None:
        """Make the namespace, the Role and its binding."""
        head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": USER, "namespace": NAMESPACE}}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "name": USER}
        self.api.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {**head, "kind": "Role", "rules": role_rules()},
            {
                **head, "kind": "RoleBinding", "roleRef": {**reference, "kind": "Role"},
                "subjects": [{**reference, "kind": "User"}],
            },
        )  # fmt: skip

    def policy(self, **spec: Any) -> None:
        """Bring the policy to this, with sweeps as quick as a test wants."""
        self.api.apply(
            {
                "apiVersion": "korrigo.io/v1alpha1", "kind": "GradingPolicy",
                "metadata": {"name": "default", "namespace": NAMESPACE}, "spec": {"sweepInterval": "1s", **spec},
            }
        )  # fmt: skip

    def start(self, identity: str = "one") -> tuple[Child, int]:
        """Start an operator; returns it and its health port."""
        self._number += 1
        health, metrics = free_port(), free_port()
        environment = clean_environment() | {
            name: value for name, value in self.rooms.environ.items() if name.startswith("KORRIGO_RPC__")
        }
        environment |= {
            "KUBECONFIG": str(self._kubeconfig), "KORRIGO_OPERATOR__IDENTITY": identity,
            "KORRIGO_OPERATOR__HEALTH_HOST": "127.0.0.1", "KORRIGO_OPERATOR__HEALTH_PORT": str(health),
            "KORRIGO_OPERATOR__LEASE_SECONDS": "5", "KORRIGO_HTTP__METRICS_PORT": str(metrics),
            "TMPDIR": str(self.temporary),
        }  # fmt: skip
        log = self.api.folder / f"operator-{self._number}.log"
        child = Child(f"operator {self._number}", [sys.executable, "-m", "korrigo_operator"], log, environment)
        child.start()
        self.running.append(child)
        return child, health

    @contextmanager
    def one(self) -> Iterator[tuple[Child, int]]:
        """Run one operator for the length of a block."""
        child, health = self.start()
        try:
            yield child, health
        finally:
            child.kill()
            self.running.remove(child)

    def end(self) -> None:
        """Kill every operator that still runs."""
        for child in self.running:
            child.kill()
        self.running.clear()

    # ------------------------------------------------------------------------------------------ looking
    def get(self, plural: str, name: str) -> Document | None:
        """Read one object."""
        return next((found for found in self.list(plural) if found["metadata"]["name"] == name), None)

    def list(self, plural: str) -> list[Document]:
        """List objects of a kind."""
        return self.api.objects(plural, NAMESPACE)

    def kubectl(self, *words: str) -> str:
        """Run kubectl in the namespace; returns what it prints."""
        return self.api.kubectl("-n", NAMESPACE, *words).stdout

    def until(self, what: str, check: Callable[[], T | None], seconds: float = SECONDS) -> T:
        """Wait until a check holds; what the operators said is told when it does not."""
        try:
            return wait_for(what, check, seconds=seconds, every_seconds=0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(child.tail(30) for child in self.running)) from None

    def status(self, plural: str, name: str) -> Document:
        """Return an object's status, empty when there is none."""
        found = self.get(plural, name)
        return dict((found or {}).get("status") or {})

    def phase(self, plural: str, name: str) -> str:
        """Return the phase of an object, empty when it has none."""
        return str(self.status(plural, name).get("phase", ""))
