"""A real API server takes every object that the chart renders; upgrades leave what people set in the policy alone.

With the definitions of the Prometheus Operator, the Gateway API, KEDA and Korrigo, validated strictly: an unknown
field is an error. The namespace enforces PodSecurity "restricted", so that a warning about a pod is an error too.
What the deploy guide would have you apply is held to the same.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from typing import Any

import pytest
import yaml

from cluster.binaries import KUBERNETES, ensure_binaries
from harness import chart
from harness.api_server import ApiServer, Document
from harness.chart import of_kind
from harness.runbooks import GUIDES

NAMESPACE = "charted"
KINDS = (
    "prometheus-operator/monitoring.coreos.com_servicemonitors",
    "prometheus-operator/monitoring.coreos.com_podmonitors",
    "prometheus-operator/monitoring.coreos.com_prometheusrules",
    "prometheus-operator/monitoring.coreos.com_alertmanagerconfigs",
    "gateway-api/gateway.networking.k8s.io_httproutes",
    "keda/keda.sh_scaledobjects",
    "keda/keda.sh_triggerauthentications",
    "cloudnative-pg/postgresql.cnpg.io_clusters",
    "rabbitmq/rabbitmq.com_rabbitmqclusters",
)
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@pytest.fixture(scope="module")
def api(api_server: ApiServer) -> ApiServer:
    """The API server with every kind that the chart may use, and a namespace that takes hardened pods only."""
    folder = ensure_binaries() / "crds"
    files = [chart.CHART / "files" / "crds", *(folder / f"{kind}.yaml" for kind in KINDS)]
    api_server.kubectl("apply", "--server-side", *(word for file in files for word in ("-f", str(file))))
    api_server.kubectl("wait", "--for=condition=Established", "--timeout=240s", "crd", "--all", seconds=300)
    api_server.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}},
    )
    return api_server


@cache
def _rendered(scenario: str) -> list[Document]:
    words = ("--namespace", NAMESPACE, "--kube-version", KUBERNETES)
    return chart.objects(chart.render(scenario=scenario, words=words))


def _try(api: ApiServer, documents: list[Document]) -> tuple[list[str], str]:
    """Send objects as they would be applied, keeping nothing; returns those that were taken, and every complaint."""
    done = api.kubectl(
        "apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict", "-o", "name", "-f", "-",
        stdin="\n---\n".join(json.dumps(document) for document in documents), is_checked=False,
    )  # fmt: skip
    return done.stdout.split(), done.stderr.strip()


@pytest.mark.parametrize("scenario", chart.SCENARIOS)
def test_the_api_server_takes_every_object(api: ApiServer, scenario: str) -> None:
    documents = _rendered(scenario)
    taken, complaints = _try(api, documents)
    assert complaints == ""
    assert len(taken) == len(documents)


def _spoilt(documents: list[Document], kind: str, path: str, value: Any) -> Document:
    spoilt = copy.deepcopy(of_kind(documents, kind)[0])
    *parents, last = path.split(".")
    place: Any = spoilt
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    return spoilt


MISTAKES: tuple[tuple[str, str, Any], ...] = (
    ("Deployment", "spec.replcas", 2),
    ("Pod", "spec.containers.0.securityContext.privileged", True),
    ("CronJob", "spec.schedule", "daily"),
    ("NetworkPolicy", "spec.policyTypes", ["Inward"]),
    ("PodDisruptionBudget", "spec.maxUnavailable", "some"),
    ("HorizontalPodAutoscaler", "spec.minReplicas", -1),
    ("HTTPRoute", "spec.rules.0.matches.0.path.type", "Somehow"),
    ("Ingress", "spec.rules.0.http.paths.0.pathType", "Somehow"),
    ("ServiceMonitor", "spec.endpoints.0.interval", "soon"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.prot", "metrics"),
    ("PrometheusRule", "spec.groups.0.rules.0.for", "a while"),
    ("AlertmanagerConfig", "spec.recievers", []),
    ("ScaledObject", "spec.triggers", None),
    ("TriggerAuthentication", "spec.secretTargetRef.0.key", 1),
    ("GradingPolicy", "spec.sweepIntervall", "60s"),
)


def test_it_would_refuse_a_mistake_in_any_kind(api: ApiServer) -> None:
    """Each kind is looked at by something that knows it: nothing passes only because nobody reads it."""
    documents = _rendered("everything")
    taken, complaints = _try(api, [_spoilt(documents, *mistake) for mistake in MISTAKES])
    assert taken == []
    assert len(complaints.splitlines()) >= len(MISTAKES)


# ------------------------------------------------------------------------------------------ the deploy guide
def _yaml_of_the_guide() -> list[Document]:
    text = (GUIDES / "cluster.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def test_what_the_guide_would_have_you_apply_is_taken(api: ApiServer) -> None:
    services = [found for found in _yaml_of_the_guide() if "kind" in found]
    assert {found["kind"] for found in services} == {"Cluster", "RabbitmqCluster"}
    for found in services:
        found["metadata"]["namespace"] = NAMESPACE
    taken, complaints = _try(api, services)
    assert complaints == ""
    assert len(taken) == len(services)
    spoilt = copy.deepcopy(services)
    for found in spoilt:
        found["spec"]["storrage"] = {}
    assert _try(api, spoilt)[0] == []


def test_the_values_of_the_guide_render_what_is_taken(api: ApiServer) -> None:
    values = [found for found in _yaml_of_the_guide() if "kind" not in found]
    assert len(values) >= 2
    for found in values:
        words = ("--namespace", NAMESPACE, "--kube-version", KUBERNETES)
        documents = chart.objects(chart.render(found, words=words))
        taken, complaints = _try(api, documents)
        assert complaints == ""
        assert len(taken) == len(documents)


# ---------------------------------------------------------------------------------------------- upgrades
def _policies(api: ApiServer, values: dict[str, Any]) -> list[Document]:
    """Render as an upgrade does, which looks at what is in the cluster; returns the policies that it would make."""
    words = ("--namespace", NAMESPACE, "--dry-run=server", "--kubeconfig", str(api.kubeconfig))
    return of_kind(chart.objects(chart.render(values, words=words)), "GradingPolicy")


def test_an_upgrade_leaves_the_policy_as_people_set_it(api: ApiServer) -> None:
    (made,) = _policies(api, {})
    api.apply(made)
    assert _policies(api, {}) == [], "a policy that is there would be made anew"
    api.kubectl("-n", NAMESPACE, "patch", "gpol", "default", "--type=merge", "-p", '{"spec": {"paused": true}}')
    api.kubectl("-n", NAMESPACE, "annotate", "gpol", "default", "korrigo.io/reconcile=paused")
    assert _policies(api, {}) == []
    assert _policies(api, {"operator": {"policy": {"spec": {"paused": True}}}}) == [], "it says that already"

    # what values name is brought to what they say; the rest is kept
    (changed,) = _policies(api, {"operator": {"policy": {"spec": {"sweepInterval": "45s"}}}})
    assert (changed["spec"]["sweepInterval"], changed["spec"]["paused"]) == ("45s", True)
    annotations = changed["metadata"]["annotations"]
    assert annotations["korrigo.io/reconcile"] == "paused"
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation"
    assert changed["metadata"]["labels"] == made["metadata"]["labels"]
    # as Helm brings it about
    api.kubectl("-n", NAMESPACE, "delete", "gpol", "default")
    api.kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(changed))
    assert _policies(api, {"operator": {"policy": {"spec": {"sweepInterval": "45s"}}}}) == []
