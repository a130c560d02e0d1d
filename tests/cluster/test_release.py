"""The product in pods, installed by the chart alone into a restricted namespace, does what it does everywhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cluster.clustered import Clustered
from cluster.installation import NAMESPACE, RELEASE, Installation
from e2e.test_story import (
    test_a_ledger_of_several_copies_holds,
    test_folded_a3_comes_out_in_reading_order,
    test_from_scan_to_final_pdf,
)
from harness.client import Client
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for

# the stories of the other modes, on the fixtures of this folder: through the gateway, the CLI in the doctor's pod
__all__ = [
    "test_a_ledger_of_several_copies_holds",
    "test_folded_a3_comes_out_in_reading_order",
    "test_from_scan_to_final_pdf",
]


def test_the_namespace_lets_only_restricted_pods_in(installation: Installation) -> None:
    labels = installation.kube.get("namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in installation.pods()}
    rooms = ("ingest", "grading", "render", "audit")
    assert components >= {*rooms, *(f"{room}-worker" for room in rooms), "operator", "monitoring"}


def test_every_object_carries_the_labels_of_the_contract(installation: Installation) -> None:
    kinds = "deployments,services,networkpolicies,poddisruptionbudgets,servicemonitors,podmonitors,httproutes,cronjobs"
    found = installation.items(kinds)
    assert len(found) > 30
    for one in found:
        labels = one["metadata"].get("labels", {})
        missing = {"name", "instance", "component", "version", "managed-by", "part-of"} - {
            key.removeprefix("app.kubernetes.io/") for key in labels
        }
        assert not missing, (one["kind"], one["metadata"]["name"], missing)


def test_helm_test_passes(installation: Installation) -> None:
    told = installation.kube.helm("test", RELEASE, "-n", NAMESPACE, "--timeout", "280s", seconds=290)
    assert "Phase:          Succeeded" in told, told
    said = installation.kubectl("logs", f"{RELEASE}-test")
    assert ".pdf" in said, said


def test_people_ask_and_act_with_kubectl_alone(instance: Clustered, admin: Client, tmp_path: Path) -> None:
    exam = admin.create_exam("Doctor")
    copy_id = admin.wait_scan(admin.upload(exam["id"], a4_scan(tmp_path / "a.pdf", [Label(90, 1, 1)]))["scan_id"])[
        "copy_ids"
    ][0]
    admin.wait_copy(copy_id, ["READY"])
    lock = admin.lock(copy_id)
    doctor = instance.cli("doctor", "--json")
    assert doctor.stdout.lstrip().startswith("{"), doctor.stdout + doctor.stderr
    assert json.loads(doctor.stdout), doctor.stdout
    stuck = instance.cli("stuck", "--json")
    assert stuck.returncode == 0, stuck.stderr
    assert copy_id not in stuck.stdout
    freed = instance.cli("force_unlock_copy", copy_id, "--reason", "the marker's machine is gone", "--json")
    assert freed.returncode == 0, freed.stdout + freed.stderr
    assert admin.wait_copy(copy_id, ["READY"])["status"] == "READY"
    assert lock.token
    cleaned = instance.cli("cleanup_orphaned_files", "--json")
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert json.loads(cleaned.stdout)["removed_count"] == 0


def test_figures(installation: Installation, record_property: Callable[[str, object], None]) -> None:
    from cluster import report

    wait_for("every pod at rest", lambda: bool(installation.pods()), seconds=10)
    record_property("told", "\n".join(report.lines(installation)))
