"""The dashboards are what the code says, ask only for what is served, and leave nothing that is served out."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.alerts import GRAFANA_URL, ROOT, SCENARIOS, rules
from harness.dashboards import FILES, asked, panels, queries
from korrigo_kit.telemetry import metrics

RECORDED = {rule["record"] for rule in rules("record")}
# What Prometheus itself makes.
BUILT_IN = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate", "priority", "severity", "scenario", "team"},
}
# operations.md 2, the last lines: the playbook's eight and what was added to them.
WANTED = (
    "Import duration by number of pages", "Finalise duration by attempt", "Errors while reading scans, per minute",
    "Lock conflicts, per minute", "Copies by status", "Queue length", "Database connections", "Request latency",
    "Stuck copies by reason", "Workers by queue", "Error budget left of 30 days", "Missing audit events by action",
    "Free room by volume", "Interventions and operator actions, per hour", "Marking ends in",
)  # fmt: skip


def _declared() -> dict[str, set[str]]:
    """Return the series that the code declares, with their labels."""
    for room in ("ingest", "grading", "audit", "operator"):
        importlib.import_module(f"korrigo_{room}.metrics")
    importlib.import_module("korrigo_kit.telemetry.gauges")
    found: dict[str, set[str]] = {}
    for metric in metrics.DECLARED.values():
        labels = set(metric.labels) | {"job", "instance"}
        if metric.kind == "histogram":
            found |= {f"{metric.name}_bucket": labels | {"le"}, f"{metric.name}_count": labels}
        else:
            found[metric.name] = labels
    return found


SERVED = _declared() | BUILT_IN


def _kept(expression: str) -> set[str]:
    """Return the labels that aggregations keep, in recorded series too."""
    kept = {label for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(", ")}
    recorded = [rule for rule in rules("record") if rule["record"] in {name for name, _ in asked(expression)}]
    return kept.union(*(_kept(rule["expr"]) for rule in recorded))


def _board(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_files_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "charts/generate_dashboards.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_every_alert_leads_to_a_dashboard() -> None:
    named = {rule["annotations"]["dashboard_url"].removeprefix(f"{GRAFANA_URL}/d/") for rule in rules("alert")}
    assert named == {f"korrigo-{name}" for name in SCENARIOS}
    uids = [_board(path)["uid"] for path in FILES]
    assert sorted(uids) == sorted(named | {"korrigo-overview"}) == sorted(path.stem for path in FILES)


def test_the_overview_has_every_panel_of_the_design() -> None:
    (overview,) = (path for path in FILES if path.stem == "korrigo-overview")
    assert set(WANTED) <= {panel["title"] for panel in panels(_board(overview))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_a_dashboard_is_complete(path: Path) -> None:
    board = _board(path)
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource"]
    shown = list(panels(board))
    assert len({panel["id"] for panel in shown}) == len(shown)
    for panel in shown:
        if panel["type"] not in ("text", "row"):
            assert panel["title"] and panel["description"] and panel["targets"], panel
            for target in panel["targets"]:
                assert target["datasource"]["uid"] == "${datasource}", "no dashboard names somebody's Prometheus"
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in shown]
    assert len(set(places)) == len(places), "panels lie on one another"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_a_dashboard_asks_only_for_what_is_served(path: Path) -> None:
    """With the labels that it matches, and keeps in its legends."""
    for query in queries(_board(path)):
        selected = asked(query.expression)
        assert selected, query.expression
        for name, labels in selected:
            assert name in SERVED or name in RECORDED, name
            assert labels <= SERVED.get(name, labels), (name, labels)
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert label in _kept(query.expression), (query.expression, query.legend)


def test_whatever_is_served_and_recorded_is_looked_at() -> None:
    """A metric that no rule and no dashboard reads is one that nobody would miss."""
    expressions = [query.expression for path in FILES for query in queries(_board(path))]
    shown = {name for expression in expressions for name, _ in asked(expression)}
    assert RECORDED - shown == set()
    ruled = {name for rule in (*rules("alert"), *rules("record")) for name, _ in asked(rule["expr"])}
    read = {re.sub(r"_(bucket|count)$", "", name) for name in shown | ruled}
    assert {metric.name for metric in metrics.DECLARED.values()} - read == set()


def test_selectors_are_found_by_the_parser() -> None:
    text = (
        'topk(3, sum by (q) (rate(a{x="1", y!~"b{c}"}[5m])) '
        '/ (b offset 5m > 0)) unless on (q) max_over_time(c[1h:5m])'
    )
    assert asked(text) == {("a", frozenset({"x", "y"})), ("b", frozenset()), ("c", frozenset())}
