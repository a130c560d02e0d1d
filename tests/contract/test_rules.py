"""The rules are what operations.md says, hold for promtool, and each alert is proved to fire and to be silent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.alerts import (
    BASE_URL,
    ESCALATION,
    GRAFANA_URL,
    METRICS,
    ROOT,
    RUNBOOKS,
    SCENARIOS,
    TABLE,
    TEAMS,
    UNIT_TESTS,
    Row,
    load,
    rule_files,
    rules,
    selectors,
)

ALERTS = rules("alert")
RECORDED = rules("record")
NAMES = sorted({rule["alert"] for rule in ALERTS})
TESTS = sorted(UNIT_TESTS.glob("*.yaml"))
ANNOTATIONS = {
    "summary", "description", "runbook_url", "dashboard_url", "first_response", "escalate_to", "escalate_after"
}  # fmt: skip

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is missing")
needs_amtool = pytest.mark.skipif(
    shutil.which("amtool") is None, reason="amtool (Debian: prometheus-alertmanager) is missing"
)


def _rule_name(rule: dict[str, Any]) -> str:
    return f"{rule['alert']}/{rule['labels']['severity']}"


def _run(*words: str | Path) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---------------------------------------------------------------------------------------------- the contract
def test_the_alerts_are_those_of_the_table() -> None:
    found = [
        Row(
            rule["alert"], rule["for"], rule["labels"]["severity"], rule["labels"]["priority"],
            rule["annotations"]["runbook_url"].removeprefix(f"{BASE_URL}/runbooks/"),
        )
        for rule in ALERTS
    ]  # fmt: skip
    assert sorted(found, key=str) == sorted(TABLE, key=str)


@pytest.mark.parametrize("rule", ALERTS, ids=_rule_name)
def test_an_alert_tells_all_that_a_page_needs(rule: dict[str, Any]) -> None:
    labels, notes = rule["labels"], rule["annotations"]
    assert labels.keys() == {"severity", "priority", "scenario", "team"}
    assert notes.keys() == ANNOTATIONS
    assert all(isinstance(text, str) and text.strip() for text in notes.values())
    assert labels["scenario"] in SCENARIOS
    assert labels["team"] in TEAMS
    assert "{{" not in notes["summary"], "the summary is constant, so that notifications can be grouped by it"
    assert notes["dashboard_url"] == f"{GRAFANA_URL}/d/korrigo-{labels['scenario']}"
    assert notes["escalate_after"] == load(ESCALATION)["escalate_after"][labels["priority"]]


def test_every_runbook_has_an_alert() -> None:
    named = {rule["annotations"]["runbook_url"].rsplit("/", 1)[1] for rule in ALERTS}
    assert named == set(RUNBOOKS)


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDED], ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_a_rule_reads_only_what_rooms_serve(rule: dict[str, Any]) -> None:
    recorded = {other["record"] for other in RECORDED} if "record" in rule else set()
    description = rule.get("annotations", {}).get("description", "")
    texts = [rule["expr"], *re.findall(r'query "((?:[^"\\]|\\.)*)"', description)]
    for text in texts:
        for name, labels in selectors(text.replace('\\"', '"')):
            metric = re.sub(r"_(bucket|count)$", "", name)
            assert name in recorded or metric in METRICS, name
            assert labels <= METRICS.get(metric, set()) | {"job", "le"}, name


def test_selectors_are_found() -> None:
    text = 'max by (queue) (a{x="1", y!~"b{c}"}) > 0 unless on (queue) time() - min_over_time(b[2m] offset 5m) # c'
    assert selectors(text.replace("b{c}", "z")) == {("a", frozenset({"x", "y"})), ("b", frozenset())}


def test_the_rules_folder_holds_rules_only() -> None:
    assert {path.suffix for path in rule_files()[0].parent.iterdir()} == {".yaml"}
    assert {path.name for path in rule_files()} == {path.name for path in rule_files()[0].parent.iterdir()}


# ---------------------------------------------------------------------------------------------- promtool
@needs_promtool
def test_promtool_takes_the_rules() -> None:
    assert "FAILED" not in _run("promtool", "check", "rules", "--lint-fatal", *rule_files())


def _variants_proved(word: str) -> set[tuple[str, str]]:
    """Return (alert, severity) for which some case says so: `fires` with a sample, `silent` without one."""
    proved: set[tuple[str, str]] = set()
    for path in TESTS:
        for test in load(path)["tests"]:
            samples = [sample["labels"] for line in test["promql_expr_test"] for sample in line["exp_samples"]]
            seen = {
                (row.alert, row.severity)
                for row in TABLE
                if any(f'alertname="{row.alert}"' in text and f'severity="{row.severity}"' in text for text in samples)
            }
            if word == "fires":
                proved |= seen
            else:
                named = {(row.alert, row.severity) for row in TABLE if test["name"].startswith(f"{row.alert} silent:")}
                proved |= named - seen
    return proved


def test_every_alert_is_proved_to_fire_and_to_be_silent() -> None:
    all_of_them = {(row.alert, row.severity) for row in TABLE}
    assert all_of_them - _variants_proved("fires") == set()
    # The watchdog is never silent.
    assert all_of_them - _variants_proved("silent") == {("Watchdog", "none")}


def test_case_names_tell_the_alert_and_what_it_does() -> None:
    wrong = [
        test["name"]
        for path in TESTS
        if not path.name.startswith("recording")
        for test in load(path)["tests"]
        if not re.match(rf"({'|'.join(NAMES)}) (fires|silent): |A healthy ", test["name"])
    ]
    assert wrong == []


def test_every_recorded_series_is_proved() -> None:
    texts = " ".join(path.read_text() for path in TESTS if path.name.startswith("recording"))
    assert [rule["record"] for rule in RECORDED if not re.search(rf"\b{rule['record']}\b", texts)] == []


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.stem))
def test_promtool_proves(path: Path) -> None:
    assert "SUCCESS" in _run("promtool", "test", "rules", path)


@needs_promtool
def test_descriptions_render(tmp_path: Path) -> None:
    """Each alert made to fire on a series with all labels: a template that fails leaves its error in the text."""
    changed = [rule | {"expr": "probe * 11", "for": "0s"} for rule in ALERTS]
    probe = 'probe{queue="ingest", job="grading", volume="blobs", instance="a"}'
    stuck = [f'grading_stuck_copies{{stage="{stage}", reason="lost_task"}}' for stage in ("import", "finalize")]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "g", "rules": changed}]}))
    test = {
        "interval": "1m",
        "input_series": [{"series": text, "values": "1x5"} for text in (probe, *stuck)],
        "alert_rule_test": [{"alertname": name, "eval_time": "2m", "exp_alerts": []} for name in NAMES],
    }
    (tmp_path / "test.json").write_text(json.dumps({"rule_files": ["rules.json"], "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert all(f'alertname="{name}"' in shown for name in NAMES), shown
    assert not re.search(r"error expanding|<no value>|\{\{", shown), shown
    assert "copies are stuck in import: the sweeper could not heal them. By reason: lost_task: 1;" in shown


# ---------------------------------------------------------------------------------------------- deploy
@needs_promtool
def test_promtool_takes_the_configuration_and_finds_the_rules() -> None:
    assert f"{len(rule_files())} rule files found" in _run("promtool", "check", "config", "deploy/prometheus.yml")


def test_prometheus_scrapes_the_product_under_the_name_that_the_alerts_know() -> None:
    jobs = {job["job_name"]: job for job in load(ROOT / "deploy/prometheus.yml")["scrape_configs"]}
    assert jobs["korrigo"]["static_configs"] == [{"targets": ["127.0.0.1:8088"]}]


@needs_amtool
def test_amtool_takes_the_configuration() -> None:
    _run("amtool", "check-config", "deploy/alertmanager.yml")


ROUTES = {
    'priority=P0 severity=critical': "slack,korrigo",
    'priority=P1 severity=critical': "slack,korrigo",
    'priority=P2 severity=warning': "slack,korrigo",
    'priority=P3 severity=info': "korrigo",
    'priority=P3 severity=none alertname=Watchdog': "watchdog",
    'severity=warning': "korrigo",
}  # fmt: skip


@needs_amtool
@pytest.mark.parametrize(("labels", "receivers"), ROUTES.items())
def test_priorities_reach_their_receivers(labels: str, receivers: str) -> None:
    words = ["amtool", "config", "routes", "test", "--config.file=deploy/alertmanager.yml", *labels.split()]
    assert _run(*words).strip().splitlines()[-1] == receivers


def test_reminders_follow_the_escalation_table() -> None:
    wanted = load(ESCALATION)["remind_every"]
    route = load(ROOT / "deploy/alertmanager.yml")["route"]
    slack = next(child for child in route["routes"] if child["receiver"] == "slack")
    for routes, priorities in ((route["routes"], wanted.keys()), (slack["routes"], {"P0", "P1", "P2"})):
        told = {
            match.group(1): child["repeat_interval"]
            for child in routes
            if (match := re.fullmatch(r'priority="(P\d)"', child["matchers"][0]))
        }
        assert told == {priority: wanted[priority] for priority in priorities}


def test_levels_begin_when_an_alert_escalates() -> None:
    table = load(ESCALATION)
    seconds = {"m": 60, "h": 3600}
    for priority, levels in table["levels"].items():
        after = table["escalate_after"][priority]
        first = [int(after[:-1]) * seconds[after[-1]]] if after != "backlog" else []
        assert list(levels.values())[:1] == first
        assert list(levels.values()) == sorted(levels.values())


def test_receivers_keep_secrets_in_files() -> None:
    text = (ROOT / "deploy/alertmanager.yml").read_text()
    assert not re.search(r"^\s*-?\s*(api_url|credentials|password|bearer_token|service_key):", text, re.MULTILINE)
    assert "api_url_file:" in text
    assert text.count("credentials_file:") == 2


# ---------------------------------------------------------------------------------------------- documents
def test_the_reference_is_up_to_date() -> None:
    _run(sys.executable, "docs/reference/generate_alerts.py", "--check")
