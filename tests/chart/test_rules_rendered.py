"""Rules in the cluster are the rule files; what values change is what they say, and promtool accepts it."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import chart
from harness.chart import Json, of_kind, rendered

FILES = {path.name: path for path in sorted((chart.CHART / "files" / "rules").glob("*.yaml"))}
DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "alertmanager.yml"


def groups(found: tuple[Json, ...] | list[Json]) -> Json:
    """Return the groups of each PrometheusRule by the name of its file."""
    return {f"{one['metadata']['name']}.yaml": one["spec"] for one in of_kind(found, "PrometheusRule")}


def test_without_a_change_the_objects_are_the_files() -> None:
    assert groups(rendered("default")) == {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}


def test_without_a_change_even_the_comments_stay() -> None:
    text = chart.render()
    for path in FILES.values():
        assert all(line.strip() in text for line in path.read_text().splitlines() if line.strip().startswith("#"))


def test_changes_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    """The scenario `everything` changes four alerts, labels, and both addresses; the rest must be the files."""
    changed = groups(rendered("everything"))
    wanted = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}
    for spec in wanted.values():
        for group in spec["groups"]:
            group["rules"] = [_changed(copy.deepcopy(rule)) for rule in group["rules"]]
            group["rules"] = [rule for rule in group["rules"] if rule.get("alert") != "LatencyDegraded"]
    assert changed == wanted
    promtool = _promtool()
    for name, spec in changed.items():
        path = tmp_path / name
        path.write_text(yaml.safe_dump(spec))
        done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool (Debian: prometheus) is missing")
    return found


def _changed(rule: Json) -> Json:
    if "alert" not in rule:
        return rule
    name = (rule["alert"], rule["labels"]["severity"])
    if name == ("QueueBacklog", "warning"):
        rule["expr"] = rule["expr"].replace("> 100", "> 250")
        rule["for"] = "20m"
    if name[0] == "FinalizationFailureHigh":
        rule["expr"] = rule["expr"].replace("> 0.10", "> 0.20")
        rule["labels"] |= {"severity": "critical", "priority": "P1"}
    if name[0] == "TempUploadsLarge":
        rule["expr"] = rule["expr"].replace("1073741824", "5368709120")
        rule["annotations"]["escalate_to"] = "Operators"
    rule["labels"]["namespace"] = "korrigo"
    for key, old, new in (
        ("runbook_url", "https://korrigo.example.org/runbooks", "https://docs.example.org/runbooks"),
        ("dashboard_url", "https://grafana.example.org/d", "https://grafana.example.org/d"),
    ):
        rule["annotations"][key] = rule["annotations"][key].replace(old, new)
    return rule


def test_dashboards_are_the_files() -> None:
    found = {key: text for one in of_kind(rendered("default"), "ConfigMap") for key, text in one["data"].items()}
    files = {path.name: path.read_text() for path in (chart.CHART / "files" / "dashboards").glob("*.json")}
    assert {name: text.rstrip("\n") for name, text in found.items()} == {
        name: text.rstrip("\n") for name, text in files.items()
    }


def _matcher(text: str) -> Json:
    for kind in ("=~", "!~", "!=", "="):
        name, separator, value = text.partition(kind)
        if separator:
            return {"name": name, "matchType": kind, "value": value.strip('"')}
    raise AssertionError(text)


def _route(route: Json, parent: str = "") -> Json:
    names = {"group_by": "groupBy", "group_wait": "groupWait", "group_interval": "groupInterval"}
    names |= {"repeat_interval": "repeatInterval"}
    found: Json = {names.get(key, key): value for key, value in route.items() if key not in ("matchers", "routes")}
    found.setdefault("receiver", parent)
    if "matchers" in route:
        found["matchers"] = [_matcher(text) for text in route["matchers"]]
    if "routes" in route:
        found["routes"] = [_route(one, found["receiver"]) for one in route["routes"]]
    return found


def test_alertmanager_is_set_up_as_on_one_machine() -> None:
    """Routes, inhibitions and texts of deploy/alertmanager.yml, with Slack on."""
    deployed: dict[str, Any] = yaml.safe_load(DEPLOYED.read_text())
    found = chart.objects(chart.render({"monitoring": {"alertmanager": {"slack": {"enabled": True}}}}))
    (config,) = of_kind(found, "AlertmanagerConfig")
    assert config["spec"]["route"] == _route(deployed["route"])
    assert config["spec"]["inhibitRules"] == [
        {
            "sourceMatch": [_matcher(text) for text in rule["source_matchers"]],
            "targetMatch": [_matcher(text) for text in rule["target_matchers"]],
            **({"equal": rule["equal"]} if "equal" in rule else {}),
        }
        for rule in deployed["inhibit_rules"]
    ]
    slack = next(one for one in deployed["receivers"] if one["name"] == "slack")["slack_configs"][0]
    own = next(one for one in config["spec"]["receivers"] if one["name"] == "slack")["slackConfigs"][0]
    assert {own[key] for key in ("color", "title", "titleLink", "text")} == {
        slack[key] for key in ("color", "title", "title_link", "text")
    }


def test_alerts_reach_the_product_with_the_token_that_it_knows() -> None:
    found = rendered("default")
    (config,) = of_kind(found, "AlertmanagerConfig")
    (own,) = next(one for one in config["spec"]["receivers"] if one["name"] == "korrigo")["webhookConfigs"]
    assert own["url"] == "http://korrigo-grading.korrigo.svc:8080/api/ops/alerts"
    shown = own["httpConfig"]["authorization"]["credentials"]
    spec = next(spec for whose, _, spec in chart.pods(found) if whose == "Deployment/korrigo-grading")
    mounted = [
        (source["secret"]["name"], item["key"])
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        for item in source["secret"]["items"]
    ]
    assert (shown["name"], shown["key"]) in mounted
