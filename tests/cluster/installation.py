"""Installs the product into a cluster by its chart alone, with data services, monitoring and a gateway beside it.

Used by `make cluster` (`cluster.command`) and by the tests' one shared cluster. Every step may be repeated: what is
there already stays as it is.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from cluster import backing, gateway
from cluster.kube import Json, Kube
from cluster.node import Node
from harness.processes import NotReady, wait_for

CHART = Path(__file__).resolve().parents[2] / "charts" / "korrigo"
VALUES = Path(__file__).resolve().parent / "values.yaml"
RELEASE = "korrigo"
NAMESPACE = "korrigo"
INSTALL_SECONDS = 900


@dataclass
class Installation:
    """One release in one cluster; `node` is the cluster itself when it is ours."""

    kube: Kube
    node: Node | None = None
    # how long `helm install` took until everything was ready, when it was this process that installed
    install_seconds: float = 0.0
    # where the gateway answers on this machine, once it is open
    url: str = ""

    def kubectl(self, *arguments: str, given: str | None = None, seconds: float = 60) -> str:
        """Run kubectl in the product's namespace."""
        return self.kube.kubectl("-n", NAMESPACE, *arguments, given=given, seconds=seconds)

    def items(self, *arguments: str) -> list[Json]:
        """List objects of the product's namespace."""
        return self.kube.items("-n", NAMESPACE, *arguments)

    def pods(self, component: str = "") -> list[Json]:
        """List the product's pods, or those of one component."""
        labels = f"app.kubernetes.io/instance={RELEASE}"
        return self.items("pods", "-l", f"{labels},app.kubernetes.io/component={component}" if component else labels)

    def korrigo(self, *words: str, given: str | None = None, seconds: float = 120) -> str:
        """Run `korrigo WORDS` as people do, in the doctor's pod."""
        return self.kubectl(
            "exec", *(["-i"] if given is not None else []), "deploy/korrigo-doctor", "--", "korrigo", *words,
            given=given, seconds=seconds,
        )  # fmt: skip

    @property
    def admin_password(self) -> str:
        """The password in secret `korrigo-admin`."""
        found = self.kube.get("-n", NAMESPACE, "secret", "korrigo-admin")["data"]["password"]
        return base64.b64decode(found).decode()

    # ------------------------------------------------------------------------------------------ steps
    def prepare(self, images: Sequence[Path], *, admin_password: str | None = None) -> None:
        """Bring everything that the chart takes for granted: namespaces, images, kinds, data services, secrets."""
        self.kube.kubectl("apply", "-f", str(backing.MANIFESTS / "namespace.yaml"))
        self.kube.apply([_namespace()])
        if self.node is not None:
            self._prepare_node(self.node, images)
        else:
            self._install_missing_kinds()
        backing.start(self.kube, NAMESPACE)
        if admin_password is not None:
            self._set_admin_password(admin_password)
        backing.start_monitoring(self.kube)
        backing.wait(self.kube)

    def _prepare_node(self, node: Node, images: Sequence[Path]) -> None:
        for archive in images:
            # an archive's name tells its content
            loaded = node.plan.data / f"{archive.name}.loaded"
            if not loaded.exists():
                node.load_image(archive)
                loaded.touch()
        if not node.plan.addons.exists():
            node.install_kinds()
        self.kube.apply([_backup_volume(node)])

    def _install_missing_kinds(self) -> None:
        known = self.kube.kubectl("get", "crd", "-o", "name")
        for kinds, sign in (("prometheus-operator", "monitoring.coreos.com"), ("gateway-api", "gateway.networking")):
            if sign not in known:
                folder = str(self.kube.binaries / "crds" / kinds)
                self.kube.kubectl("apply", "--server-side", "-f", folder, seconds=120)

    def _set_admin_password(self, password: str) -> None:
        metadata = {"name": "korrigo-admin", "namespace": NAMESPACE}
        self.kube.apply(
            [{"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"password": password}}]
        )

    def install(self, *more: str, chart: Path = CHART) -> float:
        """Install or upgrade the release, wait until everything is ready, return how long that took in seconds."""
        started = time.monotonic()
        words = ["upgrade", "--install", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", str(VALUES)]
        words += ["--wait", "--timeout", f"{INSTALL_SECONDS}s", *more]
        try:
            self.kube.helm(*words, seconds=INSTALL_SECONDS + 60)
        except AssertionError as error:
            raise NotReady(f"{error}\n{self.picture()}") from None
        return time.monotonic() - started

    def open_routes(self) -> None:
        """Set the gateway up by the chart's routes."""
        gateway.set_up(self.kube, NAMESPACE)

    def open(self, node: Node) -> str:
        """Let this machine's ports lead to the gateway and the monitoring; return the gateway's address."""
        self.open_routes()
        for name, port in (("gateway", 80), ("prometheus", 9090), ("alertmanager", 9093)):
            found = self.kube.get("-n", backing.NAMESPACE, "service", name)["spec"]["clusterIP"]
            node.forward(name, f"{found}:{port}")
        return f"http://127.0.0.1:{node.port('gateway')}"

    def wait_open(self, url: str, *, seconds: float = 120) -> None:
        """Wait until the product answers through the gateway and its admin can log in with the secret's password."""
        health = f"{url}/api/health/ready"
        ready = lambda: httpx.get(health, timeout=5, trust_env=False).status_code == 200  # noqa: E731
        wait_for(f"an answer at {health}", ready, seconds=seconds, every_seconds=0.5)
        password = self.admin_password
        body = {"username": "admin", "password": password}
        if httpx.post(f"{url}/api/login", json=body, timeout=30, trust_env=False).status_code == 401:
            # the account is older than the secret
            self.korrigo("user", "passwd", "admin", "--password-stdin", given=password)

    def picture(self) -> str:
        """Describe what does not run, for a failed installation."""
        pods = self.kube.try_kubectl("get", "pods", "-A", "-o", "wide").stdout
        events = self.kube.try_kubectl("-n", NAMESPACE, "get", "events", "--sort-by=.lastTimestamp").stdout
        tails = [pods, *events.splitlines()[-25:]]
        for pod in json.loads(self.kube.try_kubectl("-n", NAMESPACE, "get", "pods", "-o", "json").stdout)["items"]:
            statuses = pod["status"].get("containerStatuses", [])
            if pod["status"].get("phase") != "Succeeded" and not all(status["ready"] for status in statuses):
                name = pod["metadata"]["name"]
                logs = self.kube.try_kubectl("-n", NAMESPACE, "logs", name, "--tail=15").stdout
                tails += [f"--- {name}", logs]
        return "\n".join(tails)


def _namespace() -> Json:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def _backup_volume(node: Node) -> Json:
    """A volume for the claim of the backups: this cluster has no provisioner of its own."""
    folder = node.plan.data / "backups"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "korrigo-backups"},
        "spec": {
            "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }
