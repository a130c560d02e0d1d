"""A real API server with its etcd on free loopback ports, without nodes: what the operator's tests run against.

The programs come from `cluster.binaries` (Go modules, cached outside the checkout). RBAC is on: besides the
administrator there are users with the rights that a Role gives them. Of the controllers only that of namespaces runs.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from cluster import binaries
from cluster.certificates import Authority, write_kubeconfig, write_service_account_keys
from harness.processes import Child, clean_environment, free_port, wait_for

_READY_SECONDS = 120
Document = dict[str, Any]


class ApiServer:
    """etcd, kube-apiserver and the namespace controller; `kubectl` talks to it as the administrator."""

    def __init__(self) -> None:
        self._programs = binaries.ensure_kubernetes()
        self._temporary = tempfile.TemporaryDirectory(prefix="korrigo-api-server-")
        self.folder = Path(self._temporary.name)
        self.port, self._etcd_port, self._peer_port = free_port(), free_port(), free_port()
        self._pki = self.folder / "pki"
        self._pki.mkdir()
        self._authority = Authority(self._pki)
        self._authority.sign_server("apiserver", ("localhost",), ("127.0.0.1",))
        write_service_account_keys(self._pki)
        self.kubeconfig = self.user("admin", "system:masters")
        self._trusted = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        self._trusted.load_cert_chain(str(self._pki / "admin.crt"), str(self._pki / "admin.key"))
        self._children = [self._etcd(), self._api_server(), self._controllers()]
        *servers, controllers = self._children
        for child in servers:
            child.start()
        self.wait()
        # not before: it gives up for good when the API server is not ready within 10 s
        controllers.start()

    @property
    def url(self) -> str:
        """Address of the API server."""
        return f"https://127.0.0.1:{self.port}"

    def user(self, name: str, *groups: str, server: str = "", namespace: str = "default") -> Path:
        """Return the kubeconfig of a user in groups, who may do what RBAC says."""
        self._authority.sign_client(name, name, groups)
        path = self.folder / f"{name}.kubeconfig"
        write_kubeconfig(self._pki, name, server or self.url, path, namespace=namespace)
        return path

    def kubectl(
        self, *words: str, stdin: str = "", is_checked: bool = True, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator."""
        done = subprocess.run(
            [str(self._programs / "kubectl"), "--kubeconfig", str(self.kubeconfig), *words],
            input=stdin, capture_output=True, text=True, timeout=seconds, check=False,
            env=clean_environment() | {"HOME": str(self.folder)},
        )  # fmt: skip
        assert not is_checked or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done

    def apply(self, *documents: Document) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(document) for document in documents))

    def refusal(self, document: Document) -> str:
        """Return why an object is refused; fails when it is not."""
        done = self.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(document), is_checked=False)
        assert done.returncode != 0, f"accepted: {document}"
        return done.stderr

    def objects(self, plural: str, namespace: str) -> list[Document]:
        """List objects of ours. Not with kubectl, which costs half a second of a processor, in a loop that waits."""
        answer = self._ask("GET", f"/apis/korrigo.io/v1alpha1/namespaces/{namespace}/{plural}")
        found: list[Document] = answer.raise_for_status().json()["items"]
        return found

    def remove_all(self, plural: str, namespace: str) -> None:
        """Delete all objects of a kind of ours at once; those without a finalizer are gone then."""
        self._ask("DELETE", f"/apis/korrigo.io/v1alpha1/namespaces/{namespace}/{plural}").raise_for_status()

    def wait(self) -> None:
        """Wait until it answers."""
        is_ready = lambda: self._ask("GET", "/readyz").is_success  # noqa: E731
        wait_for("the API server", is_ready, seconds=_READY_SECONDS, every_seconds=0.3)

    def kill_api_server(self) -> None:
        """Kill the API server, and start it again."""
        self._children[1].kill()
        self._children[1].start()

    def told(self) -> str:
        """Return what each of its programs said last, and whether it runs."""
        return "\n".join(f"{one.name}, {one.is_running()=}:\n{one.tail(25)}" for one in self._children)

    def stop(self) -> None:
        """End everything."""
        for child in reversed(self._children):
            child.kill()
        self._temporary.cleanup()

    def _ask(self, method: str, path: str) -> httpx.Response:
        # a connection for each: the server that it led to may have been killed
        with httpx.Client(verify=self._trusted, trust_env=False, timeout=30) as client:
            return client.request(method, self.url + path)

    def _etcd(self) -> Child:
        address, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        argv = [str(self._programs / "etcd"), "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync"]
        argv += ["--listen-client-urls", address, "--advertise-client-urls", address, "--log-level", "warn"]
        argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        argv += ["--initial-cluster", f"default={peer}"]
        return self._child("etcd", argv)

    def _api_server(self) -> Child:
        pki = self._pki
        argv = [str(self._programs / "kube-apiserver"), "--bind-address=127.0.0.1", f"--secure-port={self.port}"]
        argv += [f"--etcd-servers=http://127.0.0.1:{self._etcd_port}", "--service-cluster-ip-range=10.96.0.0/16"]
        argv += ["--authorization-mode=RBAC", f"--client-ca-file={pki}/ca.crt", f"--cert-dir={self.folder}/apiserver"]
        argv += [f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key"]
        argv += ["--service-account-issuer=https://kubernetes.default.svc"]
        argv += [f"--service-account-key-file={pki}/service-accounts.pub"]
        argv += [f"--service-account-signing-key-file={pki}/service-accounts.key"]
        # without nodes there are neither accounts in pods nor priorities between many users
        argv += ["--disable-admission-plugins=ServiceAccount", "--advertise-address=127.0.0.1"]
        return self._child("kube-apiserver", argv)

    def _controllers(self) -> Child:
        argv = [str(self._programs / "kube-controller-manager"), f"--kubeconfig={self.kubeconfig}"]
        argv += ["--controllers=namespace-controller", "--leader-elect=false", "--secure-port=0"]
        return self._child("kube-controller-manager", argv)

    def _child(self, name: str, argv: Sequence[str]) -> Child:
        environment = clean_environment() | {"HOME": str(self.folder)}
        return Child(name, list(argv), self.folder / f"{name}.log", environment)
