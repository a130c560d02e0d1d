"""What holds for every object of every scenario, whatever values say: labels, hardening, limits, probes, rights."""

from __future__ import annotations

import pytest
import yaml

from harness import chart
from harness.chart import SCENARIOS, Json, name_of, of_kind, pods, rendered, selects

COMPONENTS = {
    "ingest", "grading", "render", "audit", "ingest-worker", "grading-worker", "render-worker", "audit-worker",
    "operator", "gateway", "monitoring", "backup", "migrate",
}  # fmt: skip
LABELS = {"name": "korrigo", "instance": "korrigo", "managed-by": "Helm", "part-of": "korrigo"}
# idles until somebody calls `kubectl exec`: there is nothing to probe; and what ends by itself needs no probe
UNPROBED = {"Deployment/korrigo-doctor"}
scenarios = pytest.mark.parametrize("scenario", SCENARIOS)


@pytest.mark.parametrize("words", [(), *(("--values", f"ci/{name}-values.yaml") for name in SCENARIOS[1:])])
def test_lint_finds_nothing(words: tuple[str, ...]) -> None:
    argv = [str(chart.CHART / word) if word.startswith("ci/") else word for word in words]
    assert "0 chart(s) failed" in chart.run("lint", "--strict", str(chart.CHART), *argv)


@scenarios
def test_every_object_carries_its_labels(scenario: str) -> None:
    for one in rendered(scenario):
        labels = {key.removeprefix("app.kubernetes.io/"): value for key, value in one["metadata"]["labels"].items()}
        assert LABELS.items() <= labels.items(), name_of(one)
        assert labels["component"] in COMPONENTS, name_of(one)
        assert labels["version"], name_of(one)
        if one["kind"] != "CustomResourceDefinition":
            assert one["metadata"]["namespace"] == "korrigo", name_of(one)


@scenarios
def test_no_two_objects_share_a_name(scenario: str) -> None:
    names = [name_of(one) for one in rendered(scenario)]
    assert len(names) == len(set(names))


@scenarios
def test_pods_are_restricted(scenario: str) -> None:
    found = list(pods(rendered(scenario)))
    assert len(found) >= 9
    for whose, _, spec in found:
        assert spec["enableServiceLinks"] is False, whose
        assert spec["automountServiceAccountToken"] is (whose == "Deployment/korrigo-operator"), whose
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == security["fsGroup"] == 10001, whose
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, whose
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), whose
        assert all({"emptyDir", "projected", "persistentVolumeClaim"} & set(volume) for volume in spec["volumes"])
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False, whose
            assert own["capabilities"] == {"drop": ["ALL"]}, whose
            for asked in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][asked]), whose
            assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"]), whose


@scenarios
def test_what_serves_is_probed_and_given_time_to_end(scenario: str) -> None:
    for whose, _, spec in pods(of_kind(rendered(scenario), "Deployment")):
        assert spec["terminationGracePeriodSeconds"] >= 5, whose
        if whose in UNPROBED:
            continue
        (container,) = spec["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports, (whose, probe)


@scenarios
def test_updates_take_no_room_away(scenario: str) -> None:
    for one in of_kind(rendered(scenario), "Deployment"):
        strategy = one["spec"]["strategy"]
        if one["metadata"]["name"] in ("korrigo-doctor", "korrigo-operator"):
            assert strategy == {"type": "Recreate"}
        else:
            assert strategy == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}, name_of(one)


@scenarios
def test_what_scales_itself_is_given_no_number(scenario: str) -> None:
    found = rendered(scenario)
    scaled = {
        one["spec"]["scaleTargetRef"]["name"] for one in of_kind(found, "HorizontalPodAutoscaler", "ScaledObject")
    }
    for one in of_kind(found, "Deployment"):
        assert ("replicas" in one["spec"]) is (one["metadata"]["name"] not in scaled), name_of(one)
    assert len(scaled) == (8 if scenario == "everything" else 0)


def test_workers_are_scaled_by_queues_that_there_are() -> None:
    """A room without jobs has no queue of them; KEDA gives up on a queue that does not exist."""
    from korrigo.rooms import rooms
    from korrigo_kit.room import Room

    without_jobs = Room("any", chart.CHART).tasks
    expected = {room.name: "events" if room.tasks is without_jobs else "jobs" for room in rooms()}
    assert set(expected.values()) == {"events", "jobs"}
    found = {
        one["metadata"]["name"].removeprefix("korrigo-"): one["spec"]["triggers"][0]["metadata"]["queueName"]
        for one in of_kind(rendered("everything"), "ScaledObject")
    }
    assert found == {f"{room}-worker": f"{kind}.{room}" for room, kind in expected.items()}


def test_the_backup_runs_where_the_volume_is_whatever_else_is_asked_for() -> None:
    for_nodes: Json = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    other: Json = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "fast"}}}
    for_pods: Json = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [other]}}
    for affinity in ({}, for_nodes, for_pods):
        found = chart.objects(chart.render({"pods": {"affinity": affinity}}))
        (spec,) = [spec for whose, _, spec in pods(found) if whose == "CronJob/korrigo-backup"]
        terms = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        labels = [term["labelSelector"]["matchLabels"] for term in terms]
        assert labels[-1]["app.kubernetes.io/component"] == "monitoring"
        assert ({"app": "fast"} in labels) is (affinity == for_pods)
        assert ("nodeAffinity" in spec["affinity"]) is (affinity == for_nodes)


def test_every_pod_carries_what_values_give_to_every_pod() -> None:
    for whose, metadata, _ in pods(rendered("everything")):
        assert metadata["labels"]["example.org/zone"] == "inner", whose
        assert metadata["annotations"]["example.org/scan"] == "no", whose
    for one in of_kind(chart.objects(chart.render({"serviceAccount": {"annotations": {"a": "b"}}})), "ServiceAccount"):
        assert (one["metadata"].get("annotations", {}).get("a") == "b") is (
            one["metadata"]["name"] != "korrigo-operator"
        )


def test_no_key_stands_twice() -> None:
    """YAML forbids it, helm lets it pass, and a stricter reader of the manifest refuses the release."""
    values = {"commonLabels": {"release": "exams"}, "pods": {"labels": {"release": "pods"}}}
    text = chart.render(values | {"monitoring": {"labels": {"release": "prometheus"}}}, scenario="small")
    for document in yaml.compose_all(text, Loader=yaml.CSafeLoader):
        _no_key_twice(document)


def _no_key_twice(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), node.start_mark
        for _, value in node.value:
            _no_key_twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _no_key_twice(value)


@scenarios
def test_selectors_choose_exactly_their_own_pods(scenario: str) -> None:
    """Services, budgets and monitors against the labels of the pods (or Services) that there are."""
    found = rendered(scenario)
    labels = {whose: metadata["labels"] for whose, metadata, _ in pods(found)}
    for one in of_kind(found, "Service"):
        chosen = [whose for whose, own in labels.items() if selects(one["spec"]["selector"], own)]
        assert chosen == [f"Deployment/{one['metadata']['name']}"]
        container = next(spec for whose, _, spec in pods(found) if whose == chosen[0])["containers"][0]
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= {port["name"] for port in container["ports"]}
    for one in of_kind(found, "PodDisruptionBudget", "PodMonitor"):
        chosen = [whose for whose, own in labels.items() if selects(one["spec"]["selector"]["matchLabels"], own)]
        assert chosen == [f"Deployment/{one['metadata']['name']}"], name_of(one)
    services = of_kind(found, "Service")
    for one in of_kind(found, "ServiceMonitor"):
        wanted = one["spec"]["selector"]["matchLabels"]
        (service,) = [own for own in services if selects(wanted, own["metadata"]["labels"])]
        assert one["spec"]["jobLabel"] == "app.kubernetes.io/component"
        assert {end["port"] for end in one["spec"]["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}


def test_every_process_is_scraped_and_no_deployment_is_forgotten() -> None:
    found = rendered("default")
    monitored = {one["metadata"]["name"] for one in of_kind(found, "ServiceMonitor", "PodMonitor")}
    budgets = {one["metadata"]["name"] for one in of_kind(found, "PodDisruptionBudget")}
    running = {one["metadata"]["name"] for one in of_kind(found, "Deployment")} - {"korrigo-doctor"}
    assert monitored == budgets == running


@scenarios
def test_only_the_operator_has_rights_and_they_are_listed(scenario: str) -> None:
    found = rendered(scenario)
    assert not of_kind(found, "ClusterRole", "ClusterRoleBinding")
    roles = of_kind(found, "Role")
    assert len(roles) == (0 if scenario == "bare" else 1)
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not {"secrets", "pods"} & set(rule["resources"])
            if "events" in rule["resources"]:
                assert rule["verbs"] == ["create"]
            if "leases" in rule["resources"] and rule["verbs"] != ["create"]:
                assert rule["resourceNames"] == ["korrigo-operator"]
    for account in of_kind(found, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_secrets_that_are_brought_are_made_by_nobody() -> None:
    assert not of_kind(rendered("own-secrets"), "Secret")
    made = {one["metadata"]["name"]: one for one in of_kind(rendered("default"), "Secret")}
    assert set(made) == {"korrigo-rpc", "korrigo-auth", "korrigo-admin", "korrigo-alertmanager"}
    for one in made.values():
        hooks: Json = one["metadata"]["annotations"]
        # before the migration, which makes the account admin; and no release takes them along
        assert hooks["helm.sh/hook"] == "pre-install,pre-upgrade" and int(hooks["helm.sh/hook-weight"]) < 0
    assert len(made["korrigo-rpc"]["stringData"]["secret"]) >= 32
    assert len(made["korrigo-admin"]["stringData"]["password"]) >= 12


def test_the_pair_that_helm_makes_is_one_that_the_rooms_take() -> None:
    from korrigo_kit.auth import public_keys
    from korrigo_kit.settings import load

    (secret,) = [one for one in of_kind(rendered("default"), "Secret") if one["metadata"]["name"] == "korrigo-auth"]
    private, public = (secret["stringData"][key] for key in ("signing-key.pem", "public-keys.pem"))
    (listed,) = public_keys(load(environ={"KORRIGO_AUTH__PUBLIC_KEYS": public}).auth)
    (signing,) = public_keys(load(environ={"KORRIGO_AUTH__SIGNING_KEY": private}).auth)
    assert listed.key.public_bytes_raw() == signing.key.public_bytes_raw()
