"""`make cluster` and `make cluster-down`: one cluster of this checkout, which stays when the command ends.

Run as `python -m cluster.command up|down`. Its folder has a fixed name, so that `down` finds what any `up` left, a
killed one too.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path

from cluster.binaries import ensure_binaries
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
    """Start the cluster, or find it running, and print where its API server is."""
    folder = cluster_folder()
    binaries = ensure_binaries()
    node = Node(folder, binaries)
    if node.first_pid() is None:
        node.stop()
        folder.mkdir(mode=0o700)
        started = time.monotonic()
        node = Node.create(folder)
        try:
            node.start(outlives_us=True)
        except BaseException:
            node.stop()
            raise
        print(f"==> a cluster of one node, ready in {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(f"KUBECONFIG={node.kubeconfig}")


def down() -> None:
    """End the cluster and everything in it; without one, do nothing."""
    # what runs is found by its folder alone
    Node(cluster_folder(), Path()).stop()


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
