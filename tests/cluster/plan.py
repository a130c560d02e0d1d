"""Where everything of the test cluster lies and which addresses it uses: what the files beside it agree on.

All addresses live in the cluster's own network namespace, which has no way out, so they collide with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NODE = "korrigo-node"
NODE_ADDRESS = "10.240.0.1"
NODE_NETWORK = "10.240.0.1/24"
POD_NETWORK = "10.242.0.0/16"
SERVICE_NETWORK = "10.241.0.0/16"
API_SERVICE_ADDRESS = "10.241.0.1"  # the API server takes the first of the network for itself
DNS_SERVICE_ADDRESS = "10.241.0.10"
API_PORT = 6443
# CoreDNS is a process of the node and not a pod; 53 would need the pods' own service port on the node
DNS_PORT = 5353
DOMAIN = "cluster.local"
ISSUER = f"https://kubernetes.default.svc.{DOMAIN}"
PAUSE_IMAGE = "localhost/korrigo-pause:1"
PROBE_IMAGE = "localhost/korrigo-probe:1"
CONFIG_RELOADER_IMAGE = "localhost/prometheus-config-reloader:1"


@dataclass(frozen=True)
class Plan:
    """The folders of one cluster; everything it writes lies below `folder`."""

    folder: Path
    binaries: Path

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.folder / "pki"

    @property
    def config(self) -> Path:
        """Configuration files and the kubeconfigs of the components."""
        return self.folder / "config"

    @property
    def logs(self) -> Path:
        """One log per component."""
        return self.folder / "logs"

    @property
    def data(self) -> Path:
        """What the components keep: etcd's data, containerd's content, kubelet's volumes."""
        return self.folder / "data"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens (a path of at most 107 bytes)."""
        return self.folder / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, for the machine outside the namespace."""
        return self.folder / "kubeconfig"

    @property
    def addons(self) -> Path:
        """Exists once the custom kinds are installed; then what needs them is started."""
        return self.folder / "addons"

    @property
    def forwards(self) -> Path:
        """One file per forwarded port: its name and, inside, the address in the cluster."""
        return self.folder / "forwards"

    @property
    def pid_file(self) -> Path:
        """The first process of the namespaces, as the machine outside numbers it."""
        return self.folder / "pid"

    @property
    def cgroup(self) -> str:
        """The control group below which all pods are, in every hierarchy."""
        return f"/{self.folder.name}"

    def make(self) -> None:
        """Create the folders."""
        for folder in (self.pki, self.config, self.logs, self.data, self.forwards):
            folder.mkdir(parents=True, exist_ok=True)
