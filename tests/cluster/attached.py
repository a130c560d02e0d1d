"""A cluster of somebody else's (kind, k3d, a real one), named by KUBECONFIG: what `make cluster` does there.

Nothing of it is started or ended here but a release, the data services beside it, and one process on this machine
that carries a loopback port to the gateway.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from cluster import backing, installation
from cluster.installation import Installation
from cluster.kube import Kube
from harness.processes import free_port, listens, wait_for

# port-forward ends with the pod that it leads to
_KEEP = 'while :; do "$@"; sleep 1; done'


class Attached:
    """What this machine keeps about that cluster: a folder with the port and the process of the way to its gateway."""

    def __init__(self, kubeconfig: str, binaries: Path, folder: Path | None = None) -> None:
        name = hashlib.sha256(kubeconfig.encode()).hexdigest()[:8]
        self.folder = folder or Path(tempfile.gettempdir()) / f"korrigo-attached-{name}"
        self.kube = Kube(kubeconfig, binaries, self.folder)
        self._file = self.folder / "forward.json"

    def load(self, images: Sequence[Path]) -> None:
        """Bring the images into a cluster of kind or k3d; any other one pulls them from a registry of yours."""
        context = self.kube.kubectl("config", "current-context").strip()
        for prefix, argv in (
            ("kind-", ["kind", "load", "image-archive", "--name"]),
            ("k3d-", ["k3d", "image", "import", "--cluster"]),
        ):
            if context.startswith(prefix) and shutil.which(argv[0]):
                for archive in images:
                    subprocess.run([*argv, context.removeprefix(prefix), str(archive)], check=True)

    def open(self) -> str:
        """Return the loopback address that leads to the gateway; the process that carries it outlives this one."""
        known = self._forward()
        if known is not None and listens(known):
            return f"http://127.0.0.1:{known}"
        self.close()
        port = free_port()
        words = ("-n", backing.NAMESPACE, "port-forward", "--address=127.0.0.1", "service/gateway", f"{port}:80")
        argv, environment = self.kube.argv("kubectl", *words)
        with (self.folder / "forward.log").open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _KEEP, "forward", *argv],
                env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._file.write_text(json.dumps({"pid": process.pid, "port": port}))
        wait_for("the way to the gateway", lambda: listens(port), seconds=60)
        return f"http://127.0.0.1:{port}"

    def _forward(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
            found = json.loads(self._file.read_text())
            if _KEEP in psutil.Process(found["pid"]).cmdline():
                return int(found["port"])
        return None

    def close(self) -> None:
        """End the way to the gateway."""
        if self._forward() is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(json.loads(self._file.read_text())["pid"], signal.SIGKILL)
        self._file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take the release and everything beside it out of the cluster again."""
        self.close()
        with contextlib.suppress(AssertionError):
            self.kube.helm("uninstall", installation.RELEASE, "-n", installation.NAMESPACE, "--wait", seconds=300)
        names = (installation.NAMESPACE, backing.NAMESPACE)
        self.kube.kubectl("delete", "namespace", *names, "--ignore-not-found", seconds=300)
        for kind in ("clusterrole", "clusterrolebinding"):
            self.kube.kubectl("delete", kind, "korrigo-services-prometheus", "--ignore-not-found")
        shutil.rmtree(self.folder, ignore_errors=True)


def install(attached: Attached, images: Sequence[Path], admin_password: str | None) -> tuple[Installation, str]:
    """Install into that cluster; returns the installation and the gateway's address on this machine."""
    attached.folder.mkdir(mode=0o700, exist_ok=True)
    made = Installation(attached.kube)
    attached.load(images)
    made.prepare((), admin_password=admin_password)
    made.install_seconds = made.install()
    made.open_routes()
    return made, attached.open()
