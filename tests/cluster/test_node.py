"""The Kubernetes of the tests is a real one: pods, Services, DNS, RBAC, Pod Security, custom kinds; and it ends whole.

What the chart's tests rely on is tried here with a tiny image, so that a failure there is the product's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import cgroups
from cluster.connections import Edge, edges_seen
from cluster.images import ImageConfig, oci_image
from cluster.node import MANIFESTS, TESTS, Node
from cluster.plan import API_SERVICE_ADDRESS, PROBE_IMAGE
from harness.processes import NotReady, clean_environment, is_alive, wait_for
from harness.servers import MissingTool

NAMES = "jsonpath={.items[*].metadata.name}"
API_SERVICE = f"https://{API_SERVICE_ADDRESS}"
CONTAINER = {
    "name": "asker",
    "image": PROBE_IMAGE,
    "args": ["get", "http://probe.trial/"],
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}
SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
ASKER = json.dumps({"spec": {"containers": [CONTAINER], "securityContext": SECURITY, "restartPolicy": "Never"}})


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A cluster with the two probe pods."""
    try:
        made = Node.create()
    except MissingTool as error:
        pytest.skip(f"CLUSTER MISSING: {error}")
    with made:
        made.kubectl("apply", "-f", str(MANIFESTS / "probe.yaml"))
        made.kubectl("-n", "trial", "rollout", "status", "deployment/probe", "--timeout=90s", seconds=120)
        traces = Traces(made)
        yield made
    traces.assert_gone()
    assert not made.plan.folder.exists()


class Traces:
    """What a running cluster consists of, to look for after its end."""

    def __init__(self, node: Node) -> None:
        self._folder = str(node.plan.folder)
        self._cgroup = node.plan.cgroup
        self._pids = [process.pid for process in node.processes()]
        first = node.first_pid()
        self._network = os.readlink(f"/proc/{first}/ns/net")
        assert len(self._pids) > 10, "a control plane, a node and two pods"

    def processes(self) -> list[int]:
        """List the processes that still run, or run in its network."""
        found = [pid for pid in self._pids if is_alive(pid)]
        for process in psutil.process_iter():
            try:
                network = os.readlink(f"/proc/{process.pid}/ns/net")
                is_ours = network == self._network or any(self._folder in word for word in process.cmdline())
            except (OSError, psutil.Error):
                continue
            if is_ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        return found

    def assert_gone(self, *, cleaned: bool = True) -> None:
        """Fail when a process or a mount is left and, after a stop, a control group."""
        assert self.processes() == []
        assert self._folder not in Path("/proc/self/mountinfo").read_text()
        if cleaned:
            assert cgroups.left(self._cgroup) == []


def _probe(node: Node, *command: str) -> str:
    """Run a command of the probe in one of the pods."""
    return node.kubectl("-n", "trial", "exec", "deployment/probe", "--", "/probe", *command)


def _pod_names(node: Node) -> set[str]:
    return set(node.kubectl("-n", "trial", "get", "pods", "-l", "app=probe", "-o", NAMES).split())


def test_it_is_the_kubernetes_that_it_says_it_is(node: Node) -> None:
    versions = json.loads(node.kubectl("version", "-o", "json"))
    assert versions["serverVersion"]["gitVersion"] == versions["clientVersion"]["gitVersion"] == "v1.36.3"
    assert "containerd://2.2.1" in node.kubectl("get", "nodes", "-o", "wide")


def test_a_service_leads_to_every_pod_and_has_a_name(node: Node) -> None:
    address = node.kubectl("-n", "trial", "get", "service", "probe", "-o", "jsonpath={.spec.clusterIP}")
    assert _probe(node, "lookup", "probe").split() == [address]
    assert _probe(node, "lookup", "probe.trial.svc.cluster.local").split() == [address]
    answered: set[str] = set()

    def both() -> bool:
        status, name = _probe(node, "get", "http://probe.trial/hello").split()
        assert status == "200"
        answered.add(name)
        return answered == _pod_names(node)

    wait_for("an answer of each of the two pods", both, seconds=60)


def test_a_name_outside_the_cluster_is_refused_at_once(node: Node) -> None:
    done = node.try_kubectl("-n", "trial", "exec", "deployment/probe", "--", "/probe", "lookup", "www.example.org")
    assert done.returncode != 0
    assert "no such host" in done.stderr


def test_logs_are_the_pods_own(node: Node) -> None:
    for name in _pod_names(node):
        assert f"{name} serves" in node.kubectl("-n", "trial", "logs", name)


def test_a_service_account_may_only_what_a_role_says(node: Node) -> None:
    url = f"{API_SERVICE}/api/v1/namespaces/trial/pods"
    refused = _probe(node, "api", url)
    assert refused.startswith("403\n")
    assert "system:serviceaccount:trial:default" in refused
    node.kubectl("-n", "trial", "create", "role", "look", "--verb=list", "--resource=pods")
    node.kubectl("-n", "trial", "create", "rolebinding", "look", "--role=look", "--serviceaccount=trial:default")
    wait_for("the role", lambda: _probe(node, "api", url).startswith("200\n"), seconds=20)
    assert _probe(node, "api", f"{API_SERVICE}/api/v1/namespaces/trial/secrets").startswith("403\n")


def test_a_restricted_namespace_refuses_what_is_not(node: Node) -> None:
    done = node.try_kubectl("-n", "trial", "run", "loose", f"--image={PROBE_IMAGE}", "--", "serve")
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted:latest"' in done.stderr


def test_the_machine_reaches_a_service_through_a_forwarded_port(node: Node) -> None:
    address = node.kubectl("-n", "trial", "get", "service", "probe", "-o", "jsonpath={.spec.clusterIP}")
    port = node.forward("gateway", f"{address}:80")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.read().decode().strip() in _pod_names(node)


def test_the_connection_table_knows_the_pod_behind_the_service(node: Node) -> None:
    node.kubectl("-n", "trial", "run", "asker", f"--image={PROBE_IMAGE}", "--overrides", ASKER)

    def edge() -> Edge | None:
        addresses = json.loads(node.kubectl("-n", "trial", "get", "pods", "-o", "json"))["items"]
        by_name = {pod["metadata"]["name"]: pod["status"].get("podIP") for pod in addresses}
        asker = by_name.pop("asker")
        seen = [edge for edge in edges_seen(node) if edge.source == asker and edge.target in by_name.values()]
        return seen[0] if seen else None

    found = wait_for("the asker's connection", edge, seconds=60)
    assert (found.port, found.protocol) == (8080, "tcp")


def test_custom_kinds_are_checked_and_their_operator_acts(node: Node) -> None:
    node.install_kinds()
    monitor: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "probe", "namespace": "trial"},
        "spec": {"selector": {"matchLabels": {"app": "probe"}}, "endpoints": [{"port": "http", "interval": "often"}]},
    }
    done = node.try_kubectl("apply", "-f", "-", given=json.dumps(monitor))
    assert done.returncode != 0
    assert "spec.endpoints[0].interval" in done.stderr
    monitor["spec"]["endpoints"][0]["interval"] = "30s"
    node.kubectl("apply", "-f", "-", given=json.dumps(monitor))
    prometheus = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": "trial", "namespace": "trial"},
        # no pod: what is asked here is whether the operator turns the monitor into a configuration
        "spec": {"replicas": 0, "serviceMonitorSelector": {}},
    }
    node.kubectl("apply", "-f", "-", given=json.dumps(prometheus))
    wanted = ("-n", "trial", "get", "secret", "prometheus-trial", "-o", "jsonpath={.metadata.name}")
    wait_for("the configuration that the operator writes", lambda: node.kubectl(*wanted), seconds=60)


def _kill_component(node: Node, name: str) -> None:
    killed = node.component(name)
    killed.kill()
    # NotReady would end the waiting: while it is away nothing is wrong yet
    wait_for(f"another {name}", lambda: _pid(node, name) not in (None, killed.pid), seconds=60)


def _pid(node: Node, name: str) -> int | None:
    try:
        return node.component(name).pid
    except NotReady:
        return None


def test_a_killed_component_comes_back_and_nothing_is_lost(node: Node) -> None:
    before = _pod_names(node)
    for name in ("kube-apiserver", "kubelet", "containerd"):
        _kill_component(node, name)
    asked = "http://probe.trial/"
    wait_for("an answer through all three", lambda: _probe(node, "get", asked).startswith("200"), seconds=90)
    assert _pod_names(node) == before


def test_the_same_folder_gives_the_same_image(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "run").write_text("#!/bin/sh\n")
    (folder / "bin" / "run").chmod(0o755)
    config = ImageConfig(entrypoint=["/bin/run"], environment={"A": "1"})
    first = oci_image(folder, config, "localhost/a:1", tmp_path / "1.tar").read_bytes()
    os.utime(folder / "bin" / "run", (1, 1))
    assert oci_image(folder, config, "localhost/a:1", tmp_path / "2.tar").read_bytes() == first
    (folder / "bin" / "run").chmod(0o700)
    assert oci_image(folder, config, "localhost/a:1", tmp_path / "3.tar").read_bytes() != first
    with tarfile.open(tmp_path / "1.tar") as archive:
        stored = archive.extractfile("index.json")
        assert stored is not None
        assert json.loads(stored.read())["manifests"][0]["annotations"]["io.containerd.image.name"] == "localhost/a:1"


OWNER = """
import signal, sys
from pathlib import Path
from cluster.node import Node
node = Node.create(Path(sys.argv[1]))
node.start()
print("ready", flush=True)
signal.pause()
"""


def test_a_killed_owner_leaves_nothing_running(node: Node) -> None:
    """SIGKILL, as an impatient person or the out-of-memory killer sends it: the kernel cleans up, `stop` sweeps."""
    folder = Path(tempfile.mkdtemp(prefix="korrigo-cluster-"))
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        env=clean_environment() | {"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    second = Node(folder, node.plan.binaries)
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "ready\n"
        second.kubectl("apply", "-f", str(MANIFESTS / "probe.yaml"))
        second.kubectl("-n", "trial", "rollout", "status", "deployment/probe", "--timeout=90s", seconds=120)
        traces = Traces(second)
        owner.send_signal(signal.SIGKILL)
        wait_for("the end of its processes", lambda: not traces.processes(), seconds=30)
        traces.assert_gone(cleaned=False)
        second.stop()
        traces.assert_gone()
        assert not folder.exists()
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
        second.stop()
        shutil.rmtree(folder, ignore_errors=True)
