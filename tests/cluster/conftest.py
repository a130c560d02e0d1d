"""One cluster with the product in it for all tests of this folder, installed once by the chart; they share and mend it.

The order is the one in which a cluster lives: what looks and uses it, what hurts it, what upgrades it, and at the end
what compares everything that was seen on its network.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from cluster import product_images
from cluster.binaries import ensure_binaries
from cluster.clustered import Clustered, save_logs
from cluster.command import cluster_folder
from cluster.installation import Installation
from cluster.network import Watch
from cluster.node import Node
from harness.client import Client
from harness.instances import make_user
from harness.servers import MissingTool

__all__ = ["make_user"]

ORDER = (
    "test_node", "test_release", "test_command", "test_monitoring", "test_operator",
    "test_followed_pages", "test_recovery", "test_drain", "test_pods_die", "test_upgrade_release", "test_network",
)  # fmt: skip
BUILD_SECONDS = 5400
KEEP = "KORRIGO_TEST_KEEP_HOMES"
# "1": the cluster that `make cluster` left running is used and left, so that one test can be tried in seconds
USE_RUNNING = "KORRIGO_TEST_RUNNING_CLUSTER"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files of this folder in the order of a cluster's life."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    here.sort(key=lambda item: ORDER.index(item.path.stem))
    items[:] = [item for item in items if item not in here] + here
    started: set[str] = set()
    for item in here:
        if item.get_closest_marker("timeout") is None:
            # the first of a file may have to wait for what was never built on this machine
            is_first = item.path.stem not in started
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS if is_first else 600))
        started.add(item.path.stem)


@pytest.fixture(scope="session")
def cluster_node() -> Iterator[Node]:
    """A cluster of one node, with the images of everything on it."""
    if os.environ.get(USE_RUNNING) == "1":
        yield Node(cluster_folder(), ensure_binaries())
        return
    try:
        node = Node.create()
        images = product_images.archives(node.plan.binaries)
    except MissingTool as error:
        pytest.skip(f"CLUSTER MISSING: {error}")
    with node:
        for archive in images:
            node.load_image(archive)
        node.install_kinds()
        yield node


@pytest.fixture(scope="session")
def watch(cluster_node: Node) -> Iterator[Watch]:
    """Who speaks with whom, from before the installation to the end."""
    with Watch(cluster_node, cluster_node.kube) as found:
        yield found


@pytest.fixture(scope="session")
def installation(cluster_node: Node, watch: Watch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The product on that cluster, with its gateway open."""
    made = Installation(cluster_node.kube, cluster_node)
    try:
        made.prepare(())
        made.install_seconds = made.install()
        made.url = made.open(cluster_node)
        made.wait_open(made.url)
        yield made
    finally:
        if os.environ.get(KEEP) == "1":
            save_logs(made, tmp_path_factory.getbasetemp() / "pods")


@pytest.fixture(scope="session")
def instance(installation: Installation) -> Iterator[Clustered]:
    """The product as the story and the checker see it."""
    with Clustered(installation, installation.url) as made:
        assert isinstance(made, Clustered)
        yield made


@pytest.fixture(scope="session")
def admin(instance: Clustered) -> Iterator[Client]:
    """The administrator's session."""
    with Client(instance.url, patience_seconds=30) as client:
        yield client.login("admin", instance.admin_password)


@pytest.fixture(autouse=True)
def _picture_of_a_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say what the pods were doing when a test of the product failed."""
    yield
    if "installation" in request.fixturenames and getattr(request.node, "failed", False):
        found: Installation = request.getfixturevalue("installation")
        print(found.picture())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures see how the test went."""
    report = yield
    if report.when == "call":
        item.failed = report.failed  # type: ignore[attr-defined]
    return report
