"""The chart's monitoring works in a cluster with the Prometheus Operator: targets, rules, an alert that arrives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import backing
from cluster.clustered import Clustered
from cluster.installation import Installation
from harness import alerts
from harness.client import Client
from harness.instance import ROOMS
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for
from korrigo.drills import rules as fast

# what the alerts know as `job`: every room, every worker, the operator
JOBS = {*ROOMS, *(f"{room}-worker" for room in ROOMS), "operator"}
FAST = "korrigo-fast-motion"


def _prometheus(installation: Installation, path: str, **params: str) -> Any:
    assert installation.node is not None
    url = f"http://127.0.0.1:{installation.node.port('prometheus')}/api/v1/{path}"
    answer = httpx.get(url, params=params, timeout=20, trust_env=False).raise_for_status()
    return answer.json()["data"]


def _query(installation: Installation, expression: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _prometheus(installation, "query", query=expression)["result"]
    return found


def test_every_room_worker_and_the_operator_is_scraped(installation: Installation) -> None:
    def all_up() -> bool:
        found = [(one["metric"]["job"], one["value"][1]) for one in _query(installation, "up")]
        assert {job for job, _ in found} == JOBS, found
        assert {value for _, value in found} == {"1"}, found
        running = len([pod for pod in installation.pods() if _component(pod) in JOBS])
        assert len(found) == running, (running, found)
        return True

    wait_for("up == 1 of every pod", all_up, seconds=180, every_seconds=2)
    copies = _query(installation, "max by (status) (grading_copies_by_status)")
    assert {one["metric"]["status"] for one in copies} >= {"READY", "GRADED"}

    (leading,) = _query(installation, "sum(korrigo_operator_leading)")
    assert leading["value"][1] == "1"
    assert _query(installation, "max(korrigo_operator_last_sweep_timestamp_seconds > 0)") != []


def _component(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def test_every_rule_is_loaded_and_evaluates(installation: Installation) -> None:
    wanted = sorted(rule["alert"] for rule in alerts.rules("alert")) + sorted(
        rule["record"] for rule in alerts.rules("record")
    )

    def loaded() -> bool:
        groups = _prometheus(installation, "rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        assert all(rule["health"] == "ok" for rule in found), [r for r in found if r["health"] != "ok"]
        kinds = {kind: sorted(r["name"] for r in found if r["type"] == kind) for kind in ("alerting", "recording")}
        assert kinds["alerting"] + kinds["recording"] == wanted
        return True

    wait_for("every rule, evaluated", loaded, seconds=120, every_seconds=2)


def test_a_test_alert_arrives_and_pages_nobody(instance: Clustered) -> None:
    done = instance.cli("doctor", "monitoring", "--json")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def fast_motion(installation: Installation) -> Iterator[None]:
    """The shipped alerts with every duration divided by 20, beside the shipped ones, and a webhook that hears them."""
    groups = []
    for group in fast.faster_rules(fast.shipped()["korrigo-alerts.yaml"])["groups"]:
        chosen = [rule for rule in group["rules"] if rule.get("alert") == "WorkersDown"]
        for rule in chosen:
            rule["labels"] |= {"motion": "fast"}
        if chosen:
            groups.append({"name": group["name"], "interval": "1s", "rules": chosen})
    assert groups
    metadata = {"name": FAST, "namespace": backing.NAMESPACE}
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": metadata}
    route = {
        "apiVersion": "monitoring.coreos.com/v1alpha1",
        "kind": "AlertmanagerConfig",
        "metadata": metadata,
        "spec": {
            "route": {
                "receiver": "webhook",
                "matchers": [{"name": "motion", "value": "fast", "matchType": "="}],
                "groupBy": ["alertname"],
                "groupWait": "1s",
                "groupInterval": "3s",
                "repeatInterval": "1h",
            },
            "receivers": [
                {
                    "name": "webhook",
                    "webhookConfigs": [{"url": f"http://webhook.{backing.NAMESPACE}/", "sendResolved": True}],
                }
            ],
        },
    }
    installation.kube.apply([rule | {"spec": {"groups": groups}}, route])
    yield
    for kind in ("prometheusrule", "alertmanagerconfig"):
        installation.kube.kubectl("-n", backing.NAMESPACE, "delete", kind, FAST)


def _told(installation: Installation) -> list[tuple[str, str, dict[str, str]]]:
    """Return what the webhook was told: (status, alert, labels), in order."""
    log = installation.kube.kubectl("-n", backing.NAMESPACE, "logs", "deployment/webhook", "--tail=-1")
    bodies = [json.loads(line.removeprefix("told ")) for line in log.splitlines() if line.startswith("told ")]
    return [
        (alert["status"], alert["labels"]["alertname"], alert["labels"]) for body in bodies for alert in body["alerts"]
    ]


def _has_loaded(installation: Installation) -> bool:
    rules = [rule for group in _prometheus(installation, "rules")["groups"] for rule in group["rules"]]
    return any(rule.get("labels", {}).get("motion") == "fast" for rule in rules)


@pytest.mark.timeout(600)
def test_workers_down_is_told_and_told_to_be_over(
    installation: Installation, instance: Clustered, admin: Client, fast_motion: None, tmp_path: Path
) -> None:
    wait_for("the rules in fast motion", lambda: _has_loaded(installation), seconds=180, every_seconds=2)
    exam = admin.create_exam("Nobody works")
    deployment = "deployment/korrigo-ingest-worker"
    installation.kubectl("scale", deployment, "--replicas=0")
    try:
        gone = ("wait", "pod", "-l", "app.kubernetes.io/component=ingest-worker", "--for=delete", "--timeout=120s")
        installation.kubectl(*gone, seconds=150)
        scan_id = admin.upload(exam["id"], a4_scan(tmp_path / "w.pdf", [Label(91, 1, 1)]))["scan_id"]
        firing = wait_for(
            "WorkersDown at the webhook",
            # nobody works on the room's other queue either, and which is told first is chance
            lambda: [
                labels
                for status, _, labels in _told(installation)
                if status == "firing" and labels["queue"] == "jobs.ingest"
            ],
            seconds=180,
            every_seconds=2,
        )
        assert firing[0]["severity"] == "critical"
        assert {name for _, name, _ in _told(installation)} == {"WorkersDown"}
    finally:
        installation.kubectl("scale", deployment, "--replicas=1")
    wait_for(
        "the end of WorkersDown at the webhook",
        lambda: ("resolved", "WorkersDown") in [(status, name) for status, name, _ in _told(installation)],
        seconds=240,
        every_seconds=2,
    )
    assert admin.wait_scan(scan_id, seconds=120)["state"] == "DONE"
