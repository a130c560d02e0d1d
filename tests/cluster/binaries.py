"""Builds the Kubernetes of the tests from its Go modules, once, and keeps the binaries outside the repository.

`make cluster-bin` prints the folder; `cluster.node` starts what lies in it. Every program has a small module below
`go/` that pins its sources by hash; what decides about a binary (that module, the flags, the Go version) decides its
place in the cache, so that a change rebuilds one program and an old checkout still finds its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.processes import NotReady
from harness.servers import MissingTool, build_versitygw, tool_cache

MODULES = Path(__file__).resolve().parent / "go"
# a build that hangs must still end; kube-apiserver, cold and at the lowest rank beside other work, took over 40 minutes
BUILD_SECONDS = 7200
KUBERNETES = "1.36.3"
_VERSION = "k8s.io/component-base/version"
_K8S = "k8s.io/kubernetes/cmd"
_CNI = "github.com/containernetworking/plugins/plugins"
_PROM = "github.com/prometheus-operator/prometheus-operator"
_CNPG = "github.com/cloudnative-pg/cloudnative-pg"
_RABBITMQ = "github.com/rabbitmq/cluster-operator/v2"


@dataclass(frozen=True)
class Program:
    """One Go module and the programs built from it: package to the name of its file."""

    module: str
    packages: tuple[tuple[str, str], ...]
    sets: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = ()
    cgo: bool = False
    # folders of the module's own sources that are kept: (module path, folder in it, folder beside the binaries)
    keeps: tuple[tuple[str, str, str], ...] = ()


PROGRAMS = (
    Program(
        "kubernetes",
        (
            ("go.etcd.io/etcd/server/v3", "etcd"),
            *((f"{_K8S}/{name}", name) for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")),
            *((f"{_K8S}/{name}", name) for name in ("kubelet", "kube-proxy", "kubectl")),
        ),
        # without these the server calls itself v0.0.0
        sets=(
            (f"{_VERSION}.gitVersion", f"v{KUBERNETES}"),
            (f"{_VERSION}.gitMajor", KUBERNETES.split(".")[0]),
            (f"{_VERSION}.gitMinor", KUBERNETES.split(".")[1]),
        ),
    ),
    Program(
        "containerd",
        tuple(
            (f"github.com/containerd/containerd/v2/cmd/{name}", name)
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        sets=(("github.com/containerd/containerd/v2/version.Version", "v2.2.1"),),
        tags=("no_btrfs", "no_devmapper", "no_zfs"),
    ),
    # PodSecurity "restricted" asks for a seccomp profile, so runc must know seccomp (Debian's libseccomp-dev)
    Program("runc", (("github.com/opencontainers/runc", "runc"),), tags=("seccomp",), cgo=True),
    Program(
        "cni",
        (
            (f"{_CNI}/main/ptp", "cni/ptp"),
            (f"{_CNI}/main/loopback", "cni/loopback"),
            (f"{_CNI}/ipam/host-local", "cni/host-local"),
        ),
    ),
    Program("coredns", (("github.com/coredns/coredns", "coredns"),)),
    Program(
        "helm",
        (("helm.sh/helm/v3/cmd/helm", "helm"),),
        sets=(("helm.sh/helm/v3/internal/version.version", "v3.22.0"),),
    ),
    Program(
        "prometheus-operator",
        (
            (f"{_PROM}/cmd/operator", "prometheus-operator"),
            (f"{_PROM}/cmd/prometheus-config-reloader", "prometheus-config-reloader"),
        ),
        sets=(("github.com/prometheus/common/version.Version", "0.85.0"),),
        keeps=((_PROM, "example/prometheus-operator-crd", "crds/prometheus-operator"),),
    ),
    # Debian's is built without the discovery of Kubernetes; of all discoveries this one alone, and without the pages
    # for a browser, it is half as large
    Program(
        "prometheus",
        (("github.com/prometheus/prometheus/cmd/prometheus", "prometheus"),),
        sets=(("github.com/prometheus/common/version.Version", "3.16.0"),),
        tags=("remove_all_sd", "enable_kubernetes_sd"),
    ),
    # the first process of every pod, and the only content of the image that tries the cluster itself
    Program("pause", ((".", "pause"),)),
    Program("probe", ((".", "probe"),)),
    Program("gateway-api", (), keeps=(("sigs.k8s.io/gateway-api", "config/crd/standard", "crds/gateway-api"),)),
    # not installed in the cluster of the tests; its definitions say whether the chart's ScaledObjects would be taken
    Program("keda", (), keeps=(("github.com/kedacore/keda/v2", "config/crd/bases", "crds/keda"),)),
    # nor these two: whether the data services of the deploy guide would be taken
    Program("cloudnative-pg", (), keeps=((_CNPG, "config/crd/bases", "crds/cloudnative-pg"),)),
    Program("rabbitmq-cluster-operator", (), keeps=((_RABBITMQ, "config/crd/bases", "crds/rabbitmq"),)),
)


def ensure_binaries() -> Path:
    """Return the folder with every program, building what is missing (minutes cold, a moment cached).

    Raises MissingTool without Go, a C compiler or libseccomp's headers, NotReady when a build fails.
    """
    go = _find_go()
    base = tool_cache() / "cluster"
    base.mkdir(parents=True, exist_ok=True)
    parts = [base / "parts" / f"{program.module}-{_digest(program, go)}" for program in PROGRAMS]
    folder = base / hashlib.sha256("\n".join(part.name for part in parts).encode()).hexdigest()[:16]
    if not folder.exists():
        with _locked(base / "lock"):
            for program, part in zip(PROGRAMS, parts, strict=True):
                if not part.exists():
                    _build(program, part, go)
            if not folder.exists():
                _join(parts, folder)
    return folder


def ensure_kubernetes() -> Path:
    """Return the folder with Kubernetes' own programs and etcd alone; raises as `ensure_binaries`."""
    go = _find_go()
    program = PROGRAMS[0]
    base = tool_cache() / "cluster"
    part = base / "parts" / f"{program.module}-{_digest(program, go)}"
    if not part.exists():
        part.parent.mkdir(parents=True, exist_ok=True)
        with _locked(base / "lock"):
            if not part.exists():
                _build(program, part, go)
    return part


def _find_go() -> str:
    go = shutil.which("go")
    if go is None:
        raise MissingTool("Go is not installed: the Kubernetes of the tests cannot be built")
    return go


def _digest(program: Program, go: str) -> str:
    # the command line, not the caller's environment: two checkouts on one machine share the cache
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    texts = [repr(program), version, platform.machine()]
    texts += [path.read_text() for path in sorted((MODULES / program.module).iterdir())]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(program: Program, part: Path, go: str) -> None:
    """Build one module's programs into a folder that appears under its name only when it is complete."""
    if program.cgo:
        _need_seccomp()
    started = time.monotonic()
    print(f"==> building {program.module}", file=sys.stderr, flush=True)
    making = part.with_name(f"{part.name}.making-{os.getpid()}")
    making.mkdir(parents=True)
    try:
        for package, name in program.packages:
            (making / name).parent.mkdir(exist_ok=True)
            _go([*_build_command(program, go), "-o", str(making / name), package], program)
        for module, source, target in program.keeps:
            _keep(program, go, module, source, making / target)
        making.rename(part)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    print(f"    {program.module}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _build_command(program: Program, go: str) -> list[str]:
    flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in program.sets)])
    command = ["nice", "-n", "15", go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", flags]
    return [*command, "-tags", ",".join(program.tags)] if program.tags else command


def _go(command: Sequence[str], program: Program) -> str:
    environment = os.environ | {"CGO_ENABLED": "1" if program.cgo else "0", "GOWORK": "off"}
    done = subprocess.run(
        command,
        cwd=MODULES / program.module,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise NotReady(f"{' '.join(command)} in {program.module} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _need_seccomp() -> None:
    done = subprocess.run(["pkg-config", "--exists", "libseccomp"], capture_output=True, check=False)
    if done.returncode != 0:
        raise MissingTool("libseccomp's headers are not installed (Debian: libseccomp-dev), runc cannot be built")


def _keep(program: Program, go: str, module: str, source: str, target: Path) -> None:
    _go([go, "mod", "download", module], program)
    folder = Path(_go([go, "list", "-m", "-f", "{{.Dir}}", module], program).strip())
    # the module cache is read-only, a copy of its folder must not be
    shutil.copytree(folder / source, target, copy_function=shutil.copyfile)
    target.chmod(0o755)


def _join(parts: Sequence[Path], folder: Path) -> None:
    """Put all programs into one folder: hard links, so that it costs nothing."""
    making = folder.with_name(f"{folder.name}.making-{os.getpid()}")
    for part in parts:
        shutil.copytree(part, making, copy_function=os.link, dirs_exist_ok=True)
    shutil.copy2(build_versitygw(), making / "versitygw")
    making.rename(folder)


def main() -> int:
    """Print the folder of the binaries; progress goes to stderr."""
    try:
        print(ensure_binaries())
    except (MissingTool, NotReady) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
