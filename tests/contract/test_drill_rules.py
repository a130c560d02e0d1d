"""The rules that drills load are the shipped ones with every duration divided by 20, and nothing else is different.

Held against a parser of PromQL: the drill's own reading of expressions is not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from korrigo.drills import rules
from korrigo_kit.errors import Bug

FACTOR = 20
SHIPPED = rules.shipped()
EXPRESSIONS = [rule["expr"] for file in SHIPPED.values() for group in file["groups"] for rule in group["rules"]]
UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
WAITS = {"group_wait", "group_interval", "repeat_interval", "resolve_timeout"}
TIMES = {"for", "keep_firing_for", "interval", "scrape_interval", "evaluation_interval", *WAITS}
Fact = tuple[str, Any]


def milliseconds(text: str) -> int:
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhd])", text))


def facts(node: Any) -> Iterator[Fact]:
    """Yield everything that an expression says, in order: its text without times and ages, then each of those."""
    kind = type(node).__name__
    yield "node", kind
    for name in ("range", "step", "offset"):
        found = getattr(node, name, None)
        if found is not None:
            yield "time", found
    if kind == "VectorSelector":
        yield "selector", (node.name, sorted((m.name, str(m.op), m.value) for m in node.matchers.matchers))
    elif kind == "NumberLiteral":
        yield "number", node.val
    elif kind == "Call":
        yield "function", node.func.name
    for name in ("op", "modifier"):
        found = getattr(node, name, None)
        if found is not None:
            yield name, modifier(found)
    is_age = kind == "BinaryExpr" and "time()" in node.lhs.prettify() and type(node.rhs).__name__ == "NumberLiteral"
    for child in children(node):
        told = list(facts(child))
        yield from (("age", value) if is_age and key == "number" else (key, value) for key, value in told)


def modifier(found: Any) -> Any:
    """Return what a node says of matching or grouping, without the addresses of what has no text."""
    text = {name: str(getattr(found, name)) for name in dir(found) if not name.startswith("_")}
    return {name: re.sub(r" at 0x[0-9a-f]+", "", value) for name, value in text.items()}


def children(node: Any) -> Iterator[Any]:
    for name in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
        found = getattr(node, name, None)
        if isinstance(found, list | tuple):
            yield from found
        elif found is not None and type(found).__name__ not in ("str", "float", "NoneType"):
            yield found


def told(expression: str) -> list[Fact]:
    return list(facts(promql_parser.parse(expression)))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_only_the_times_of_an_expression_differ(expression: str) -> None:
    before, after = told(expression), told(rules.faster_expression(expression))
    assert [key for key, _ in before] == [key for key, _ in after]
    for (key, old), (_, new) in zip(before, after, strict=True):
        if key == "time":
            assert isinstance(old, timedelta)
            assert old == FACTOR * new
        elif key == "age":
            assert old == FACTOR * new
        else:
            assert old == new, key


def test_the_rules_hold_what_the_test_looks_for() -> None:
    """No times or ages found would be no proof."""
    found = [key for expression in EXPRESSIONS for key, _ in told(expression)]
    assert found.count("time") > 50
    assert [value for expression in EXPRESSIONS for key, value in told(expression) if key == "age"] == [93600, 300]
    assert any(re.search(r"/ 5 > 5", expression) for expression in EXPRESSIONS), "per-minute arithmetic"


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict):
        assert list(before) == list(after), path
        for key in before:
            yield from differences(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, list):
        assert len(before) == len(after), path
        for old, new in zip(before, after, strict=True):
            yield from differences(old, new, path)
    elif before != after:
        yield path, before, after


@pytest.mark.parametrize("name", SHIPPED)
def test_only_the_times_of_a_rule_file_differ(name: str) -> None:
    found = list(differences(SHIPPED[name], rules.faster_rules(SHIPPED[name])))
    assert found
    for path, old, new in found:
        key = path.rpartition("/")[2]
        if key != "expr":
            assert key in TIMES, path
            assert milliseconds(old) == FACTOR * milliseconds(new), path


def times_of(item: Any) -> Iterator[tuple[str, str]]:
    if isinstance(item, dict):
        for key, value in item.items():
            if key in TIMES:
                yield key, value
            yield from times_of(value)
    elif isinstance(item, list):
        for value in item:
            yield from times_of(value)


def test_only_addresses_and_times_of_the_alerting_differ(tmp_path: Path) -> None:
    shipped = rules.load(rules.checkout("deploy/alertmanager.yml"))
    product, receiver = "http://127.0.0.1:1", "http://127.0.0.1:2"
    made = rules.alertmanager(
        product=product, receiver=receiver, token_file=tmp_path / "t", slack_file=tmp_path / "s"
    )
    for found in made["receivers"]:  # one more is told; the shipped ones stay
        hooks = found.get("webhook_configs", [])
        assert [hook["url"] for hook in hooks[1:]] == [f"{receiver}/{found['name']}" for _ in hooks[1:]]
        del hooks[1:]
    changed = list(differences(shipped, made))
    for path, old, new in changed:
        key = path.rpartition("/")[2]
        if key in WAITS:
            assert milliseconds(old) == FACTOR * milliseconds(new)
        else:
            assert key in {"url", "credentials_file", "api_url_file"}, path
    divided = [old for path, old, _ in changed if path.rpartition("/")[2] in WAITS]
    assert sorted(divided) == sorted(text for _, text in times_of(shipped) if text != "0s")
    watched = rules.load(rules.checkout("deploy/prometheus.yml"))
    looking = rules.prometheus(target="127.0.0.1:1", alertmanager="127.0.0.1:3", rules=tmp_path, is_fast=True)
    paths = {path: (old, new) for path, old, new in differences(watched, looking) if "targets" not in path}
    assert {path: milliseconds(old) / milliseconds(new) for path, (old, new) in paths.items() if "global" in path} == {
        "/global/scrape_interval": FACTOR, "/global/evaluation_interval": FACTOR,
    }  # fmt: skip
    assert set(paths) == {"/global/scrape_interval", "/global/evaluation_interval", "/rule_files"}


def test_what_cannot_be_divided_is_refused() -> None:
    for expression, reason in {
        "rate(x[7ms]) > 1": "UNDIVIDED_DURATION",
        "x - time() < 300": "UNDIVIDED_AGE",
        "time() - x > y": "UNDIVIDED_AGE",
    }.items():
        with pytest.raises(Bug) as raised:
            rules.faster_expression(expression)
        assert raised.value.reason == reason


def test_words_and_remarks_are_left_alone() -> None:
    text = 'x{path="/a[5m] offset 1h"} > 0  # [5m], time() - x > 300'
    assert rules.faster_expression(text) == text
    assert rules.faster_expression("sum(rate(x[1h:30s] offset 5m)) > 5") == "sum(rate(x[180s:1500ms] offset 15s)) > 5"


def test_how_long_an_alert_may_come_late_is_read_from_its_rule() -> None:
    """Range, `for`, group_wait and group_interval of the shipped files, divided."""
    reach = rules.reach_seconds()
    every = [rule for file in SHIPPED.values() for group in file["groups"] for rule in group["rules"]]
    assert set(reach) == {rule["alert"] for rule in every if "alert" in rule}
    assert reach["FinalizationFailureHigh"] == (15 + 5 + 0.5 + 5) * 60 / FACTOR
    assert reach["Watchdog"] == 5.5 * 60 / FACTOR
