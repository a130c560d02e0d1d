"""A real one-node Kubernetes for the tests: starts it, waits for it, talks to it, and ends it without a trace.

Used by the tests through `Node.create()` and by `cluster.command` for `make cluster`. Everything runs in namespaces of
its own behind one first process (`cluster.first_process`), so that stopping is one signal and an interrupted test run
leaves nothing either: the kernel ends processes, mounts and interfaces with it. Needs root, util-linux, iproute2, nft.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster import cgroups
from cluster.binaries import ensure_binaries
from cluster.certificates import write_certificates, write_kubeconfigs
from cluster.components import write_configuration
from cluster.images import ImageConfig, oci_image
from cluster.kube import Kube
from cluster.plan import API_PORT, CONFIG_RELOADER_IMAGE, NODE, NODE_ADDRESS, PAUSE_IMAGE, PROBE_IMAGE, Plan
from harness.processes import Child, NotReady, is_alive, wait_for
from harness.servers import MissingTool

MANIFESTS = Path(__file__).resolve().parent / "manifests"
TESTS = Path(__file__).resolve().parents[1]
# what a machine needs beside the binaries: program to Debian's package
PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "mount": "mount", "ip": "iproute2", "nft": "nftables"}
# ports on the machine's loopback; all but the API server's lead nowhere until `forward` says where
PORTS = ("api", "gateway", "prometheus", "alertmanager")


class Node:
    """One node with its control plane, on free ports of the loopback, everything below one folder."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.plan = Plan(folder, binaries)
        self._child: Child | None = None

    @classmethod
    def create(cls, folder: Path | None = None) -> Node:
        """Prepare a node in a new folder (short, for socket paths); builds the binaries when they are missing.

        Raises MissingTool when this machine cannot run it.
        """
        _check_machine()
        binaries = ensure_binaries()
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="korrigo-cluster-"))
        return cls(folder, binaries)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.plan.kubeconfig

    # ------------------------------------------------------------------------------------------ start and stop
    def start(self, *, outlives_us: bool = False) -> None:
        """Start everything and wait until pods can run; with `outlives_us` it stays when this process ends."""
        self.plan.make()
        listeners = {name: socket.create_server(("127.0.0.1", 0), backlog=128) for name in PORTS}
        try:
            ports = {name: int(listener.getsockname()[1]) for name, listener in listeners.items()}
            (self.plan.folder / "ports.json").write_text(json.dumps(ports))
            self.forward("api", f"{NODE_ADDRESS}:{API_PORT}")
            write_certificates(self.plan)
            write_kubeconfigs(self.plan, ports["api"])
            write_configuration(self.plan)
            cgroups.make(self.plan.cgroup)
            self._spawn(listeners, outlives_us=outlives_us)
        finally:
            for listener in listeners.values():
                listener.close()
        self._wait_ready()

    def _spawn(self, listeners: dict[str, socket.socket], *, outlives_us: bool) -> None:
        fds = {name: listener.fileno() for name, listener in listeners.items()}
        for fd in fds.values():
            os.set_inheritable(fd, True)
        argv = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--net", "--uts", "--ipc"]
        argv += ["--propagation", "private", sys.executable, "-m", "cluster.first_process", str(self.plan.folder)]
        argv += [f"{fd}={name}" for name, fd in fds.items()]
        # nothing of the caller's: a proxy variable would send the components outside, where there is no way
        environment = {
            "PATH": f"{self.plan.binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.plan.data),
            "PYTHONPATH": str(TESTS),
        }
        child = Child(
            "cluster",
            argv,
            self.plan.logs / "first-process.log",
            environment,
            pass_fds=list(fds.values()),
            outlives_us=outlives_us,
        )
        self._child = child
        child.start()

        def first_pid() -> int:
            if not child.is_running():
                raise NotReady(f"the cluster's first process ended\n{child.tail()}")
            return int(psutil.Process(child.pid).children()[0].pid)

        self.plan.pid_file.write_text(str(wait_for("the cluster's first process", first_pid, seconds=20)))

    def _wait_ready(self) -> None:
        try:
            self._wait("the API server", lambda: self.kubectl("get", "--raw", "/readyz") == "ok", seconds=300)
            self.kubectl("apply", "-f", str(MANIFESTS / "dns.yaml"))
            self._wait("containerd", self.plan.containerd_socket.exists, seconds=120)
            self._load_own_images()
            condition = '{.status.conditions[?(@.type=="Ready")].status}'
            ready = ("get", "node", NODE, "-o", f"jsonpath={condition}")
            self._wait("the node", lambda: self.kubectl(*ready) == "True", seconds=300)
            # pods are refused until their namespace has one
            found = ("get", "serviceaccount", "default", "-o", "name")
            self._wait("a service account", lambda: self.kubectl(*found) != "", seconds=120)
        except NotReady as error:
            raise NotReady(f"{error}\n{self.log_tails()}") from None

    def _wait(self, what: str, check: Callable[[], bool], *, seconds: float) -> None:
        def checked() -> bool:
            if self.first_pid() is None:
                raise NotReady(f"{what}: the cluster's first process ended")
            return check()

        wait_for(what, checked, seconds=seconds)

    def _load_own_images(self) -> None:
        self._load_program("/pause", PAUSE_IMAGE, "65535:65535")
        self._load_program("/probe", PROBE_IMAGE, "65532:65532")

    def _load_program(self, path: str, name: str, user: str) -> None:
        """Import an image that holds one program and nothing else, at this path."""
        program = Path(path).name
        folder = self.plan.data / f"image-{program}"
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.plan.binaries / program, target)
        config = ImageConfig(entrypoint=[path], user=user)
        self.load_image(oci_image(folder, config, name, self.plan.data / f"{program}.tar"))

    def stop(self) -> None:
        """End everything and remove the folder; calling it again does no harm.

        Raises NotReady when something of it is left after a minute.
        """
        pid = self.first_pid()
        if pid is not None:
            parent = psutil.Process(pid).parent()
            os.kill(pid, signal.SIGTERM)
            _wait_gone(pid, parent)
        if self._child is not None:
            # interrupted before its first process was known
            self._child.kill()
        cgroups_gone = f"the control groups of {self.plan.cgroup}"
        wait_for(cgroups_gone, lambda: _removed(self.plan.cgroup), seconds=60)
        shutil.rmtree(self.plan.folder, ignore_errors=True)

    def first_pid(self) -> int | None:
        """Return the first process of the namespaces as this machine numbers it; None when it does not run."""
        try:
            pid = int(self.plan.pid_file.read_text())
            command = psutil.Process(pid).cmdline()
        except (OSError, ValueError, psutil.Error):
            return None
        # the number may be another process's by now
        return pid if str(self.plan.folder) in command and "cluster.first_process" in command else None

    def __enter__(self) -> Node:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------ use
    @property
    def kube(self) -> Kube:
        """kubectl and helm as the administrator."""
        return Kube(str(self.kubeconfig), self.plan.binaries, self.plan.data)

    def kubectl(self, *arguments: str, given: str | None = None, seconds: float = 60) -> str:
        """Run kubectl as the administrator and return its output; raises AssertionError with its complaint."""
        return self.kube.kubectl(*arguments, given=given, seconds=seconds)

    def try_kubectl(
        self, *arguments: str, given: str | None = None, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return what became of it."""
        return self.kube.try_kubectl(*arguments, given=given, seconds=seconds)

    def load_image(self, archive: Path) -> None:
        """Import an OCI archive; pods use it with `imagePullPolicy: IfNotPresent` or `Never`."""
        argv = [str(self.plan.binaries / "ctr"), "--address", str(self.plan.containerd_socket), "--namespace", "k8s.io"]
        done = subprocess.run(
            [*argv, "images", "import", str(archive)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(f"ctr images import {archive.name}: {done.stderr.strip() or done.stdout.strip()}")

    def install_kinds(self) -> None:
        """Install the custom kinds of the Prometheus Operator and the Gateway API, and start that operator."""
        for kinds in ("prometheus-operator", "gateway-api"):
            folder = self.plan.binaries / "crds" / kinds
            # they are longer than the annotation in which a client-side apply would keep them
            self.kubectl("apply", "--server-side", "-f", str(folder), seconds=300)
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s", seconds=300)
        # where the operator looks for it
        self._load_program("/bin/prometheus-config-reloader", CONFIG_RELOADER_IMAGE, "65534:65534")
        self.plan.addons.touch()

    def port(self, name: str) -> int:
        """Return the loopback port of one of PORTS."""
        ports: dict[str, int] = json.loads((self.plan.folder / "ports.json").read_text())
        return ports[name]

    def forward(self, name: str, target: str) -> int:
        """Let one of PORTS lead to HOST:PORT in the cluster (a Service's address, say) and return the port."""
        making = self.plan.forwards / f".{name}"
        making.write_text(target)
        making.rename(self.plan.forwards / name)
        return self.port(name)

    def inside(self, *argv: str) -> list[str]:
        """Return the command line that runs a program in the node's namespaces."""
        pid = self.first_pid()
        assert pid is not None, "the cluster does not run"
        return ["nsenter", "--target", str(pid), "--net", "--mount", "--pid", "--uts", "--ipc", *argv]

    def processes(self) -> list[psutil.Process]:
        """List everything that runs in the node's namespaces, pods included."""
        pid = self.first_pid()
        if pid is None:
            return []
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]

    def component(self, name: str) -> psutil.Process:
        """Return the process of one component; killed, it is started again in a moment."""
        path = str(self.plan.binaries / name)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] == [path] and process.ppid() == self.first_pid():
                    return process
        raise NotReady(f"{name} does not run")

    def log_tails(self, lines: int = 15) -> str:
        """Return the end of every component's log."""
        tails = []
        for log in sorted(self.plan.logs.glob("*.log")):
            tails += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(tails)


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise MissingTool("the Kubernetes of the tests needs root (namespaces, mounts, control groups)")
    missing = [f"{program} ({package})" for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise MissingTool(f"the Kubernetes of the tests needs {', '.join(missing)} on PATH")


def _wait_gone(pid: int, parent: psutil.Process | None) -> None:
    wait_for(f"the end of the cluster ({pid})", lambda: not is_alive(pid), seconds=60)
    if parent is not None and parent.is_running():
        # unshare, which only waited for it
        with contextlib.suppress(psutil.Error, subprocess.TimeoutExpired):
            parent.wait(10)


def _removed(cgroup: str) -> bool:
    # the kernel needs a moment until a killed pod's group is empty
    try:
        cgroups.remove(cgroup)
    except OSError:
        time.sleep(0.05)
    return not cgroups.left(cgroup)
