"""The operator in the cluster: trouble shows in kubectl, is healed and goes; what it leaves behind deletes cleanly."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cluster.clustered import Clustered
from cluster.installation import Installation
from cluster.kube import Json
from harness.client import Client
from harness.ledger import Ledger
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for
from harness.story import Marker

API = "korrigo.io/v1alpha1"
QUESTIONS = {"q1": 8.0, "q2": 12.0}


def _stuck(installation: Installation, copy_id: str) -> Json | None:
    return next((one for one in installation.items("stuckcopies") if one["spec"].get("copyId") == copy_id), None)


def _phase(installation: Installation, copy_id: str) -> str:
    found = _stuck(installation, copy_id)
    return str(found.get("status", {}).get("phase", "")) if found else "gone"


@pytest.mark.timeout(600)
def test_a_stuck_copy_is_listed_healed_and_resolved(
    installation: Installation, instance: Clustered, admin: Client, tmp_path: Path
) -> None:
    exam = admin.create_exam("Stuck", questions=QUESTIONS)
    scan = admin.wait_scan(admin.upload(exam["id"], a4_scan(tmp_path / "s.pdf", [Label(94, 1, 1)]))["scan_id"])
    copy_id = scan["copy_ids"][0]
    ready = admin.wait_copy(copy_id, ["READY"])
    deployment = "deployment/korrigo-render-worker"
    installation.kubectl("scale", deployment, "--replicas=0")
    try:
        gone = ("wait", "pod", "-l", "app.kubernetes.io/component=render-worker", "--for=delete", "--timeout=120s")
        installation.kubectl(*gone, seconds=150)
        Marker(admin, Ledger(), random.Random(1)).mark(ready, QUESTIONS)
        # by both at any time: what the operator has just tried again counts as moving for a while
        told: list[str] = []

        def seen_by_both() -> Json | None:
            told.extend(instance.cli("stuck", "--json").stdout.splitlines())
            return _stuck(installation, copy_id) if copy_id in "".join(told) else None

        found = wait_for("the stuck copy in kubectl and the CLI", seen_by_both, seconds=300, every_seconds=2)
        assert (found["spec"]["stage"], found["spec"]["exam"]) == ("finalize", exam["id"])
        assert found["spec"]["anonymousId"] == ready["anonymous_id"]
        listed = installation.kubectl("get", "stuck")
        assert found["metadata"]["name"] in listed, listed
    finally:
        installation.kubectl("scale", deployment, "--replicas=1")
    admin.wait_graded(copy_id, seconds=240)
    wait_for(
        "its end in kubectl",
        lambda: _phase(installation, copy_id) in ("Resolved", "gone"),
        seconds=180,
        every_seconds=2,
    )
    policy = installation.items("gradingpolicies")[0]
    assert policy["metadata"]["name"] == "default"
    assert policy["status"]["lastSweepTime"]


def test_a_person_intervenes_with_kubectl(installation: Installation, instance: Clustered) -> None:
    wish = {
        "apiVersion": API,
        "kind": "Intervention",
        "metadata": {"name": "look-at-the-trail", "namespace": "korrigo"},
        "spec": {"action": "VerifyAudit", "target": {"kind": "all"}, "reason": "before the jury meets"},
    }
    installation.kube.apply([wish])

    def done() -> Json | None:
        found = installation.kube.get("-n", "korrigo", "intervention", "look-at-the-trail").get("status", {})
        assert found.get("phase") != "Failed", found
        return found if found.get("phase") == "Succeeded" else None

    status = wait_for("the intervention's success", done, seconds=120, every_seconds=1)
    assert status.get("problems", 0) == 0
    assert "look-at-the-trail" in installation.kubectl("get", "iv")
    changed = json.dumps({"spec": {"reason": "something else"}})
    words = ("-n", "korrigo", "patch", "intervention", "look-at-the-trail", "--type=merge", "-p", changed)
    assert installation.kube.try_kubectl(*words).returncode != 0, "a spec that was acted on may not change"
    dry = instance.cli("intervene", "VerifyAudit", "all", "--dry-run", "--reason", "the same by the CLI", "--json")
    assert dry.returncode == 0, dry.stdout + dry.stderr


def test_a_namespace_with_all_four_kinds_deletes(installation: Installation) -> None:
    kube = installation.kube
    name = "passing"
    kube.kubectl("create", "namespace", name)
    some = "019405ab-7c1e-7b10-9d1e-0d5b2f7f1a11"
    since = "2026-11-30T00:00:00Z"
    specs: dict[str, Json] = {
        "GradingPolicy": {},
        "StuckCopy": {"room": "grading", "stage": "finalize", "reason": "lost_task", "since": since, "copyId": some},
        "Intervention": {"action": "VerifyAudit", "target": {"kind": "all"}, "reason": "to pass"},
        "Incident": {
            "groupId": some, "title": "WorkersDown", "priority": "P0", "severity": "critical", "startTime": since,
        },
    }  # fmt: skip
    kube.apply(
        [
            {
                "apiVersion": API, "kind": kind, "spec": spec,
                "metadata": {"name": "default" if kind == "GradingPolicy" else "passing", "namespace": name},
            }
            for kind, spec in specs.items()
        ]
    )  # fmt: skip
    kube.kubectl("delete", "namespace", name, "--timeout=90s", seconds=120)
    assert kube.try_kubectl("get", "namespace", name).returncode != 0
