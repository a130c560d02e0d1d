"""A drain of the node takes the product's pods away only as fast as their disruption budgets allow."""

from __future__ import annotations

import subprocess
import threading

import httpx
import pytest

from cluster.clustered import Clustered, evict, is_ready
from cluster.installation import NAMESPACE, Installation
from harness.processes import wait_for

ROOMS = ("ingest", "grading", "render", "audit")
# Everything that runs: the doctor has no budget, the rest has.
RUNNING = (*ROOMS, *(f"{room}-worker" for room in ROOMS), "operator", "monitoring")
DRAINED = f"app.kubernetes.io/name=korrigo,app.kubernetes.io/component in ({','.join(RUNNING)})"


def test_a_second_pod_is_not_evicted_before_the_first_is_replaced(installation: Installation) -> None:
    first, second = sorted(pod["metadata"]["name"] for pod in installation.pods("grading"))
    assert evict(installation, first)
    assert not evict(installation, second), "the budget of grading was not respected"
    wait_for("another pod in its place", lambda: _ready(installation) == 2, seconds=180, every_seconds=1)


def _ready(installation: Installation) -> int:
    return sum(is_ready(pod) for pod in installation.pods("grading"))


@pytest.mark.timeout(600)
def test_a_drain_ends_and_people_notice_nothing(installation: Installation, instance: Clustered) -> None:
    node = installation.kube.items("nodes")[0]["metadata"]["name"]

    def chosen() -> set[str]:
        return {pod["metadata"]["name"] for pod in installation.pods() if _is_chosen(pod)}

    # Two of grading, one of everything else; one that another test evicted takes its time to end.
    wait_for("every pod once", lambda: len(chosen()) == len(RUNNING) + 1, seconds=120, every_seconds=1)
    before = chosen()
    fewest = [2]
    over = threading.Event()
    refused: list[str] = []

    def look() -> None:
        with httpx.Client(base_url=instance.url, timeout=10, trust_env=False) as client:
            while not over.wait(0.5):
                fewest.append(_ready(installation))
                answer = client.get("/api/health/live")
                if answer.status_code != 200:
                    refused.append(answer.text)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    words = ("drain", node, "--pod-selector", DRAINED, "--delete-emptydir-data", "--ignore-daemonsets")
    argv, environment = installation.kube.argv("kubectl", *words, "--timeout=400s")
    draining = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        # there is no second node for the pods to go to: this one takes them back
        wait_for(
            "the node closed to new pods",
            lambda: installation.kube.get("node", node)["spec"].get("unschedulable"),
            seconds=60,
        )
        installation.kube.kubectl("uncordon", node)
        told, _ = draining.communicate(timeout=420)
    finally:
        draining.kill()
        installation.kube.kubectl("uncordon", node)
        over.set()
        watcher.join(60)
    assert draining.returncode == 0, told
    assert not before & {pod["metadata"]["name"] for pod in installation.pods()}, told
    assert min(fewest) >= 1, "grading was away"
    assert refused == []
    wait_for("every pod in its place", lambda: _ready(installation) == 2, seconds=180, every_seconds=1)
    for name in RUNNING:
        deployment = f"deployment/korrigo-{name}".replace("monitoring", "doctor")
        installation.kube.kubectl("-n", NAMESPACE, "rollout", "status", deployment, "--timeout=180s", seconds=200)


def _is_chosen(pod: dict[str, object]) -> bool:
    labels = pod["metadata"]["labels"]  # type: ignore[index]
    return labels["app.kubernetes.io/component"] in RUNNING
