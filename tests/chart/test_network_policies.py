"""The chart's NetworkPolicies: default-deny, both ends of a connection agree, and no rule is for nobody."""

from __future__ import annotations

import pytest

from harness import chart
from harness.chart import Json, name_of, of_kind, pods, rendered, selects

RULED = [scenario for scenario in chart.SCENARIOS if scenario != "bare"]


def labels_of(found: tuple[Json, ...]) -> dict[str, Json]:
    return {whose: metadata["labels"] for whose, metadata, _ in pods(found)}


@pytest.mark.parametrize("scenario", RULED)
def test_everything_is_denied_and_every_pod_has_a_policy_of_its_own(scenario: str) -> None:
    found = rendered(scenario)
    policies = of_kind(found, "NetworkPolicy")
    denying = [one for one in policies if "ingress" not in one["spec"] and "egress" not in one["spec"]]
    (deny,) = denying
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for whose, labels in labels_of(found).items():
        assert selects(deny["spec"]["podSelector"]["matchLabels"], labels), whose
        own = [
            one for one in policies if one is not deny and selects(one["spec"]["podSelector"]["matchLabels"], labels)
        ]
        assert len(own) == 1, f"{whose} is under {[name_of(one) for one in own]}"
        assert own[0]["spec"]["policyTypes"] == ["Ingress", "Egress"], whose


@pytest.mark.parametrize("scenario", RULED)
def test_no_policy_is_for_nobody(scenario: str) -> None:
    found = rendered(scenario)
    for one in of_kind(found, "NetworkPolicy"):
        chosen = [w for w, own in labels_of(found).items() if selects(one["spec"]["podSelector"]["matchLabels"], own)]
        assert chosen, name_of(one)


def edges(found: tuple[Json, ...], direction: str, peer: str) -> set[tuple[str, str, int]]:
    """Return (caller, called, port) as one direction of the rules tells them, between pods of the release."""
    parts = labels_of(found)
    seen = set()
    for one in of_kind(found, "NetworkPolicy"):
        subjects = [w for w, own in parts.items() if selects(one["spec"]["podSelector"]["matchLabels"], own)]
        for rule in one["spec"].get(direction, []):
            for other in rule.get(peer, []):
                wanted = other.get("podSelector", {}).get("matchLabels", {})
                if "namespaceSelector" in other or "app.kubernetes.io/component" not in wanted:
                    continue
                others = [w for w, own in parts.items() if selects(wanted, own)]
                for port in rule["ports"]:
                    pairs = [(s, o) if direction == "egress" else (o, s) for s in subjects for o in others]
                    seen |= {(caller, called, port["port"]) for caller, called in pairs}
    return seen


@pytest.mark.parametrize("scenario", RULED)
def test_both_ends_of_a_connection_agree(scenario: str) -> None:
    found = rendered(scenario)
    out, into = edges(found, "egress", "to"), edges(found, "ingress", "from")
    assert out == into
    rooms = {f"Deployment/korrigo-{room}" for room in ("ingest", "grading", "render", "audit")}
    assert {called for _, called, port in out if port == 9090} == rooms
    assert ("Deployment/korrigo-render-worker", "Deployment/korrigo-audit", 9090) not in out


@pytest.mark.parametrize("scenario", chart.SCENARIOS)
def test_routes_lead_to_ports_that_there_are(scenario: str) -> None:
    found = rendered(scenario)
    services = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]} for one in of_kind(found, "Service")
    }
    for route in of_kind(found, "HTTPRoute"):
        targets = [target for rule in route["spec"]["rules"] for target in rule["backendRefs"]]
        assert all(target["port"] in services[target["name"]] for target in targets)
    for ingress in of_kind(found, "Ingress"):
        paths = {path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]}
        assert {"/", "/api/scans", "/api/audit", "/verify"} <= paths


def test_the_routes_are_those_of_the_house() -> None:
    from harness.production import PREFIXES

    (route,) = of_kind(rendered("default"), "HTTPRoute")
    found = {
        rule["backendRefs"][0]["name"].removeprefix("korrigo-"): tuple(m["path"]["value"] for m in rule["matches"])
        for rule in route["spec"]["rules"]
    }
    assert found == {room: tuple(prefixes) for room, prefixes in PREFIXES.items()}


@pytest.mark.parametrize("scenario", RULED)
def test_an_upgrade_finds_the_policies_that_it_needs(scenario: str) -> None:
    """Its hooks run before it changes anything, so under what `helm install` rendered."""
    upgraded = chart.objects(chart.render(scenario=scenario, words=("--is-upgrade",)))
    assert of_kind(upgraded, "NetworkPolicy") == of_kind(rendered(scenario), "NetworkPolicy")


@pytest.mark.parametrize(
    ("values", "policy", "ways"),
    [
        ({"tests": {"url": "https://x.example.org"}}, "korrigo-test", [80, 443]),
        ({"publicUrl": "https://x.example.org"}, "korrigo-doctor", [80, 443]),
        ({"objectStore": {"existingSecret": ""}}, "korrigo-ingest-worker", [80]),
    ],
)
def test_what_values_name_can_be_reached(values: Json, policy: str, ways: list[int]) -> None:
    def ports(found: list[Json] | tuple[Json, ...]) -> list[list[int]]:
        (one,) = [one for one in of_kind(found, "NetworkPolicy") if one["metadata"]["name"] == policy]
        return [[port["port"] for port in rule["ports"]] for rule in one["spec"]["egress"]]

    before = ports(rendered("default"))
    after = ports(chart.objects(chart.render(values)))
    assert ways in after and len(after) == len(before) + 1
