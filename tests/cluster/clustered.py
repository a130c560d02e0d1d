"""The product in a cluster, asked and hurt as every other instance is: by HTTP, by its CLI in a pod, by faults.

The story and the checker are the ones of the other modes (`harness.instance`); what dies here is a pod, in each of the
ways in which a cluster takes pods away.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

from cluster import backing
from cluster.installation import NAMESPACE, RELEASE, Installation
from cluster.kube import Json
from harness.instance import ROOMS, Instance
from harness.processes import NotReady, wait_for

KINDS = {
    "api": ROOMS,
    "worker": tuple(f"{room}-worker" for room in ROOMS),
    "operator": ("operator",),
}
# ends every process of the container but this one, at once and without a word to it
_KILL_ALL = "import os, signal; os.kill(-1, signal.SIGKILL)"


def is_ready(pod: Json) -> bool:
    """Tell whether a pod is ready and is not on its way out."""
    conditions = {found["type"]: found["status"] for found in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


class Clustered(Instance):
    """A release in a cluster, behind its gateway."""

    mode = "cluster"

    def __init__(self, installation: Installation, url: str) -> None:
        super().__init__()
        self.installation = installation
        self.url = url
        self.admin_password = installation.admin_password

    def start(self) -> None:
        """It runs already."""

    def stop(self) -> None:
        """Remove what is kept here; the release stays."""
        shutil.rmtree(self.home, ignore_errors=True)

    def cli(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `korrigo WORDS` in the doctor's pod."""
        command = ("exec", "deploy/korrigo-doctor", "--", "korrigo", *words)
        return self.installation.kube.try_kubectl("-n", NAMESPACE, *command, seconds=seconds)

    def workers(self) -> list[int]:
        return self._roots()

    def victims(self) -> dict[str, list[int]]:
        return {kind: [] for kind in KINDS}

    def _roots(self) -> list[int]:
        raise AssertionError("what runs in pods has no process ids for a test")

    def kill(self, victim: str, choose: random.Random) -> str:
        """Take a ready pod away: `killed KIND`, `deleted KIND` or `evicted KIND`, KIND one of KINDS."""
        how, _, kind = victim.partition(" ")
        components = KINDS[kind]
        pod = wait_for(f"a ready pod of {kind}", lambda: self._ready(components, choose), seconds=180)
        name = str(pod["metadata"]["name"])
        {"killed": self._kill, "deleted": self._delete, "evicted": self._evict}[how](name)
        return f"{name} was {how}"

    def _ready(self, components: tuple[str, ...], choose: random.Random) -> Json | None:
        wanted = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component in ({','.join(components)})"
        pods = [pod for pod in self.installation.items("pods", "-l", wanted) if is_ready(pod)]
        return choose.choice(sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))) if pods else None

    def _kill(self, name: str) -> None:
        command = ("exec", name, "--", "python", "-c", _KILL_ALL)
        done = self.installation.kube.try_kubectl("-n", NAMESPACE, *command)
        # 137: it went down with what it killed
        if done.returncode not in (0, 137):
            raise NotReady(f"{name} could not be killed: {done.stderr}")

    def _delete(self, name: str) -> None:
        # without a grace period: no process is asked to end
        self.installation.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")

    def _evict(self, name: str) -> None:
        wait_for(f"the eviction of {name}", lambda: evict(self.installation, name), seconds=120, every_seconds=1)

    def wipe_broker(self) -> None:
        """Take the broker's pod, and with it every queue and message."""
        kube = self.installation.kube
        kube.kubectl("-n", backing.NAMESPACE, "delete", "pod", "-l", "app=rabbitmq", "--grace-period=0", "--force")
        backing.wait(kube)


def evict(installation: Installation, name: str) -> bool:
    """Ask the API server to evict a pod; False when a disruption budget does not allow it now."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": NAMESPACE},
    }
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
    done = installation.kube.try_kubectl("create", "--raw", path, "-f", "-", given=json.dumps(body))
    if done.returncode == 0:
        return True
    if "disruption budget" in done.stderr or "TooManyRequests" in done.stderr:
        return False
    raise NotReady(f"{name} could not be evicted: {done.stderr}")


def save_logs(installation: Installation, folder: Path) -> None:
    """Write the log of every pod of the product below a folder, for a failed run."""
    folder.mkdir(parents=True, exist_ok=True)
    for pod in installation.pods():
        name = pod["metadata"]["name"]
        for which, words in (("", ()), (".previous", ("--previous",))):
            done = installation.kube.try_kubectl("-n", NAMESPACE, "logs", name, *words)
            if done.returncode == 0:
                (folder / f"{name}{which}.log").write_text(done.stdout)
