"""`make cluster` and `make cluster-down`: one cluster of this checkout with the product in it, which stays.

Run as `python -m cluster.command up|down`. Its folder has a fixed name, so that `down` finds what any `up` left, a
killed one too. With KUBECONFIG set, `up` installs into that cluster and starts none; `down` takes it out again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

from cluster import attached, product_images
from cluster.attached import Attached
from cluster.binaries import ensure_binaries
from cluster.installation import Installation
from cluster.node import Node
from harness.processes import NotReady
from harness.servers import MissingTool

CHECKOUT = Path(__file__).resolve().parents[2]


def cluster_folder() -> Path:
    """Return the folder of this checkout's cluster; it need not exist."""
    # as short as it can be: sockets lie below it
    name = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"korrigo-cluster-{name}"


def up() -> None:
    """Install the product into this checkout's cluster, started if need be; print where both answer."""
    password = os.environ.get("KORRIGO_ADMIN_PASSWORD") or None
    if password is not None and len(password) < 12:
        raise NotReady("KORRIGO_ADMIN_PASSWORD: 12 characters at least")
    binaries = ensure_binaries()
    images = product_images.archives(binaries)
    foreign = _foreign_kubeconfig()
    started = time.monotonic()
    if foreign is not None:
        kubeconfig = foreign
        installation, url = attached.install(Attached(foreign, binaries), images, password)
    else:
        node = _node(binaries)
        kubeconfig = str(node.kubeconfig)
        installation = Installation(node.kube, node)
        installation.prepare(images, admin_password=password)
        _say("installing the chart")
        # other images under the same tag are other pods
        mark = f"pods.annotations.korrigo\\.io/images={images[-1].stem}"
        installation.install_seconds = installation.install("--set-string", mark)
        url = installation.open(node)
    installation.wait_open(url)
    _say(f"installed in {installation.install_seconds:.0f} s, all of it ready in {time.monotonic() - started:.0f} s")
    print(f"Korrigo is ready at {url}")
    print(f"KUBECONFIG={kubeconfig}", flush=True)


def _foreign_kubeconfig() -> str | None:
    """Return KUBECONFIG when it names another cluster than this checkout's own."""
    named = os.environ.get("KUBECONFIG", "")
    return named if named and named != str(Node(cluster_folder(), Path()).kubeconfig) else None


def _node(binaries: Path) -> Node:
    folder = cluster_folder()
    node = Node(folder, binaries)
    if node.first_pid() is not None:
        return node
    node.stop()
    folder.mkdir(mode=0o700)
    started = time.monotonic()
    node = Node.create(folder)
    try:
        node.start(outlives_us=True)
    except BaseException:
        node.stop()
        raise
    _say(f"a cluster of one node, ready in {time.monotonic() - started:.0f} s")
    return node


def down() -> None:
    """End the cluster and everything in it, and undo an installation into KUBECONFIG's; without either, do nothing."""
    foreign = _foreign_kubeconfig()
    if foreign is not None:
        found = Attached(foreign, Path())
        if found.folder.exists():
            Attached(foreign, ensure_binaries()).remove()
    # what runs is found by its folder alone
    Node(cluster_folder(), Path()).stop()


def _say(line: str) -> None:
    print(f"==> {line}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run `up` or `down`."""
    commands = {"up": up, "down": down}
    if len(arguments) != 1 or arguments[0] not in commands:
        print("usage: python -m cluster.command up|down", file=sys.stderr)
        return 2
    try:
        commands[arguments[0]]()
    except (MissingTool, NotReady) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
