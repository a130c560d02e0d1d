"""Figures of the product in the cluster, for the guides: image sizes, time to ready, CPU and memory of every idle pod.

Printed by the cluster's tests, and by `python -m cluster.report` for the cluster that `make cluster` left.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.installation import NAMESPACE, Installation
from cluster.kube import Json
from cluster.node import Node

IDLE_SECONDS = 20


def lines(installation: Installation) -> Iterator[str]:
    """Measure for a moment and yield one line per figure; nothing else may use the cluster meanwhile."""
    node = installation.node
    if installation.install_seconds:
        yield f"helm install until everything was ready: {installation.install_seconds:.0f} s"
    if node is not None:
        for name, size in sorted(_image_sizes(node).items()):
            yield f"image {name}: {size / 1e6:.0f} MB unpacked"
    before, at = _usage(installation), time.monotonic()
    time.sleep(IDLE_SECONDS)
    after, passed = _usage(installation), time.monotonic() - at
    for name in sorted(set(before) & set(after)):
        cores = (after[name][0] - before[name][0]) / 1e9 / passed
        yield f"pod {name}: {1000 * cores:.0f} millicores, {after[name][1] / 2**20:.0f} MiB"
    total = sum(memory for _, memory in after.values())
    yield f"all {len(after)} pods of the product: {total / 2**20:.0f} MiB"


def _image_sizes(node: Node) -> dict[str, int]:
    found: dict[str, int] = {}
    for image in node.kube.items("nodes")[0]["status"]["images"]:
        for name in image.get("names") or ():
            if "korrigo" in name and "@" not in name:
                found[name] = image["sizeBytes"]
    return found


def _usage(installation: Installation) -> dict[str, tuple[int, int]]:
    """Return (CPU nanoseconds used, bytes of the working set) of every pod, as kubelet counts them."""
    name = installation.kube.items("nodes")[0]["metadata"]["name"]
    told: Json = json.loads(installation.kube.kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/stats/summary"))
    return {
        pod["podRef"]["name"]: (pod["cpu"]["usageCoreNanoSeconds"], pod["memory"]["workingSetBytes"])
        for pod in told["pods"]
        if pod["podRef"]["namespace"] == NAMESPACE and "usageCoreNanoSeconds" in pod.get("cpu", {})
    }


def main() -> int:
    """Print the figures of this checkout's cluster."""
    from cluster.binaries import ensure_binaries
    from cluster.command import cluster_folder

    node = Node(Path(cluster_folder()), ensure_binaries())
    for line in lines(Installation(node.kube, node)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
