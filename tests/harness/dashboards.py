"""Reading the Grafana dashboards: their panels, their queries, and what a query selects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser

from harness.alerts import ROOT

FILES = sorted((ROOT / "charts" / "korrigo" / "files" / "dashboards").glob("*.json"))


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    panel: str
    expression: str
    legend: str


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel, those of folded rows too."""
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels") or ()


def queries(board: dict[str, Any]) -> list[Query]:
    """List every query of a dashboard."""
    return [
        Query(panel["title"], target["expr"], target.get("legendFormat", ""))
        for panel in panels(board)
        for target in panel.get("targets", ())
    ]


def asked(expression: str) -> set[tuple[str, frozenset[str]]]:
    """Return the (metric, matched labels) that an expression selects; ValueError when it is no PromQL."""
    found: set[tuple[str, frozenset[str]]] = set()
    _collect(promql_parser.parse(expression), found)
    return found


def _collect(node: Any, found: set[tuple[str, frozenset[str]]]) -> None:
    if isinstance(node, promql_parser.VectorSelector):
        labels = frozenset(matcher.name for matcher in node.matchers.matchers)
        found.add((str(node.name), labels - {"__name__"}))
        return
    for part in ("expr", "lhs", "rhs", "vector_selector", "vs", "param"):
        child = getattr(node, part, None)
        if child is not None:
            _collect(child, found)
    for child in getattr(node, "args", None) or ():
        _collect(child, found)
