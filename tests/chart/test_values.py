"""What values may say: wrong ones are refused by a sentence that names them, and the generated files follow."""

from __future__ import annotations

from typing import Any

import pytest

from harness import chart

ALERTS: dict[str, Any] = {"monitoring": {"rules": {"alerts": {}}}}


def alerts(**changes: Any) -> dict[str, Any]:
    return {"monitoring": {"rules": {"alerts": changes}}}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ingrest": {}}, "ingrest"),
        ({"ingest": {"api": {"replcas": 2}}}, "replcas"),
        ({"ingest": {"api": {"replicas": 0}}}, "minimum"),
        ({"ingest": {"api": {"replicas": "two"}}}, "want integer"),
        ({"grading": {"api": {"pod": {"hostNetwork": True}}}}, "hostNetwork"),
        ({"grading": {"api": {"resources": {"limits": {"gpu": 1}}}}}, "gpu"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": {"digests": {"grading": "latest"}}}, "digests"),
        ({"log": {"level": "LOUD"}}, "level"),
        ({"settings": {"KORRIGO_LOCK": "1"}}, "KORRIGO_LOCK"),
        ({"settings": {"KORRIGO_LOCK__TTL_SECONDS": 900}}, "want string"),
        ({"objectStore": {"url": "https://bucket"}}, "objectStore"),
        ({"publicUrl": "https://marking.example.org/korrigo"}, "publicUrl"),
        ({"postgresql": {"existingSecret": ""}}, "existingSecret"),
        ({"grading": {"api": {"terminationGracePeriodSeconds": 5}}}, "terminationGracePeriodSeconds"),
        ({"gateway": {"parentRefs": []}}, "gateway.parentRefs is empty: name the Gateway"),
        ({"ingress": {"enabled": True}}, "ingress.host is empty: name the host"),
        (
            {"networkPolicy": {"enabled": False, "ingress": {"gateway": {"from": [{"podSelector": {}}]}}}},
            "networkPolicy.enabled=false lets everybody in",
        ),
        (
            {"audit": {"api": {"autoscaling": {"minReplicas": 9, "maxReplicas": 3}}}},
            "audit.api.autoscaling: minReplicas 9 is above maxReplicas 3",
        ),
        (
            {"render": {"worker": {"keda": {"minReplicas": 9, "maxReplicas": 3}}}},
            "render.worker.keda: minReplicas 9 is above maxReplicas 3",
        ),
        (
            {"ingest": {"api": {"podDisruptionBudget": {"maxUnavailable": 0}}}},
            "ingest.api.podDisruptionBudget.maxUnavailable is 0: no drain",
        ),
        (
            {"operator": {"podDisruptionBudget": {"maxUnavailable": "0%"}}},
            "operator.podDisruptionBudget.maxUnavailable is 0",
        ),
        ({"operator": {"podDisruptionBudget": {"maxUnavailable": -1}}}, "minimum"),
        ({"backup": {"persistence": {"accessMode": "ReadWriteOncePod"}}}, "ReadWriteOncePod lets one pod mount"),
        (
            {"grading": {"api": {"pod": {"labels": {"app.kubernetes.io/component": "x"}}}}},
            "grading.api.pod.labels: app.kubernetes.io/component is set by the chart",
        ),
        ({"settings": {"KORRIGO_BLOBS__URL": "s3://x"}}, "settings.KORRIGO_BLOBS__URL is set by objectStore"),
        (alerts(QueueBaklog={"threshold": 1}), "there is no alert QueueBaklog; known are ImportStuck"),
        (alerts(QueueBacklog={"treshold": 1}), "treshold"),
        (alerts(QueueBacklog={"for": "soon"}), "for"),
        (
            alerts(FinalizationFailureHigh={"threshold": 1}),
            "FinalizationFailureHigh.threshold: the expression compares with 2 numbers",
        ),
        (alerts(MetricsAbsent={"threshold": 1}), "MetricsAbsent.threshold: the expression compares with 0 numbers"),
        (alerts(BrokerDown={"replace": {"== 5": "== 6"}}), 'BrokerDown.replace: "== 5" is not in the expression'),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(chart.Refused) as refused:
        chart.render(values)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("toggle", "kinds"),
    [
        ("gateway.enabled", {"HTTPRoute"}),
        ("networkPolicy.enabled", {"NetworkPolicy"}),
        ("monitoring.serviceMonitors.enabled", {"ServiceMonitor"}),
        ("monitoring.podMonitors.enabled", {"PodMonitor"}),
        ("monitoring.rules.enabled", {"PrometheusRule"}),
        ("monitoring.alertmanager.enabled", {"AlertmanagerConfig"}),
        ("monitoring.dashboards.enabled", {"ConfigMap"}),
        ("crds.enabled", {"CustomResourceDefinition"}),
        ("operator.enabled", {"Role", "RoleBinding", "GradingPolicy"}),
        ("operator.policy.create", {"GradingPolicy"}),
    ],
)
def test_every_switch_takes_away_what_it_says_and_nothing_else(toggle: str, kinds: set[str]) -> None:
    before = {one["kind"] for one in chart.rendered("default")}
    after = {one["kind"] for one in chart.objects(chart.render(words=("--set", f"{toggle}=false")))}
    assert before - after == kinds


def names(values: dict[str, Any] | None = None) -> set[str]:
    found = chart.objects(chart.render(values)) if values else chart.rendered("default")
    return {chart.name_of(one) for one in found}


PARTS = [f"{room}.{part}" for room in ("ingest", "grading", "render", "audit") for part in ("api", "worker")]


def whose(part: str) -> str:
    room, _, kind = part.partition(".")
    return f"korrigo-{room}-worker" if kind == "worker" else f"korrigo-{room}"


@pytest.mark.parametrize(
    ("values", "gone"),
    [
        *(
            ({part.partition(".")[0]: {part.partition(".")[2]: {"podDisruptionBudget": {"enabled": False}}}},
             {f"PodDisruptionBudget/{whose(part)}"})
            for part in PARTS
        ),
        ({"operator": {"podDisruptionBudget": {"enabled": False}}}, {"PodDisruptionBudget/korrigo-operator"}),
        ({"doctor": {"enabled": False}}, {"Deployment/korrigo-doctor", "NetworkPolicy/korrigo-doctor"}),
    ],
)  # fmt: skip
def test_a_switch_of_one_part_takes_away_its_own(values: dict[str, Any], gone: set[str]) -> None:
    assert names() - names(values) == gone


@pytest.mark.parametrize(
    ("values", "new"),
    [
        *(({part.partition(".")[0]: {"api": {"autoscaling": {"enabled": True}}}},
           {f"HorizontalPodAutoscaler/{whose(part)}"}) for part in PARTS if part.endswith("api")),
        *(({part.partition(".")[0]: {"worker": {"keda": {"enabled": True}}}},
           {f"ScaledObject/{whose(part)}", f"TriggerAuthentication/{whose(part)}"})
          for part in PARTS if part.endswith("worker")),
        ({"ingress": {"enabled": True, "host": "x.example.org"}}, {"Ingress/korrigo"}),
    ],
)  # fmt: skip
def test_a_switch_of_one_part_brings_its_own(values: dict[str, Any], new: set[str]) -> None:
    assert names(values) - names() == new


def test_definitions_that_are_not_kept_go_with_the_release() -> None:
    definitions = chart.of_kind(chart.rendered("default"), "CustomResourceDefinition")
    kept = [one["metadata"].get("annotations", {}) for one in definitions]
    assert all(found["helm.sh/resource-policy"] == "keep" for found in kept)
    text = chart.render({"crds": {"keep": False}})
    for one in chart.of_kind(chart.objects(text), "CustomResourceDefinition"):
        assert "helm.sh/resource-policy" not in one["metadata"].get("annotations", {})


def test_the_chart_may_be_a_part_of_another() -> None:
    chart.render({"global": {"imageRegistry": "registry.example.org"}})


def test_an_external_backup_takes_job_volume_and_alert_along() -> None:
    found = chart.objects(chart.render({"backup": {"external": True}}))
    assert not chart.of_kind(found, "CronJob", "PersistentVolumeClaim")
    names = {
        rule.get("alert")
        for one in chart.of_kind(found, "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
    }
    assert "BackupTooOld" not in names and "DatabaseDown" in names


def test_a_pod_of_the_last_release_keeps_its_settings() -> None:
    """A ConfigMap that all share would hand it those of the next, which it refuses (see _settings.tpl)."""
    for _, _, spec in chart.pods(chart.rendered("default")):
        for container in spec["containers"]:
            assert "envFrom" not in container
            assert all("configMapKeyRef" not in entry.get("valueFrom", {}) for entry in container["env"])


def test_every_setting_that_the_chart_writes_is_known() -> None:
    from korrigo.rooms import sections
    from korrigo_kit.settings import KIT_SECTIONS, PREFIX, UNSECTIONED, _resolve

    models = {model.section: model for model in (*KIT_SECTIONS, *sections())}
    for scenario in chart.SCENARIOS:
        for whose, _, spec in chart.pods(chart.rendered(scenario)):
            for entry in spec["containers"][0]["env"]:
                name = entry["name"]
                if name.startswith(PREFIX) and name not in UNSECTIONED:
                    assert _resolve(name, models) is not None, f"{whose}: {name}"
