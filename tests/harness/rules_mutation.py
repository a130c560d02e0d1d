"""Mutants of the rules: each differs from them in one number, window, `for`, comparison or set operator.

A mutant is killed when the promtool tests of its alert fail. To be quick a mutant is run alone: a rules file that
holds nothing but that alert, and the cases that expect something of it. Called by tests/contract/test_rules_mutation.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.alerts import UNIT_TESTS, load, rule_files

# What is left as it is: label matchers, strings, comments, names.
TOKEN = re.compile(
    r"""(?P<skip>\{[^}]*\}|"[^"]*"|\#[^\n]*)
      |(?P<set>\b(?:and|or|unless)\b)
      |(?P<name>[a-zA-Z_:][\w:]*)
      |(?P<duration>\d+[smhdw])
      |(?P<number>\d+(?:\.\d+)?)
      |(?P<compare>==|!=|>=|<=|>|<)""",
    re.VERBOSE,
)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
COMPARISONS = {">": (">=", "<"), ">=": (">", "<"), "<": ("<=", ">"), "<=": ("<", ">"), "==": ("!=",), "!=": ("==",)}
SET_OPERATORS = {"and": "or", "or": "and", "unless": "and"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule of `path` in which one thing is different."""

    path: Path
    name: str
    labels: str
    change: str
    rule: dict[str, Any]
    original: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}{self.labels}: {self.change}"


def _durations(text: str) -> list[str]:
    amount, unit = int(text[:-1]), text[-1]
    seconds = amount * SECONDS[unit]
    small = SECONDS[unit] if amount >= 5 else max(1, seconds // 4)
    if seconds == 0:
        return ["1m"]
    return [f"{value}s" for value in (seconds * 2, seconds // 2, seconds + small, seconds - small)]


def _numbers(text: str) -> list[str]:
    value = float(text)
    if value == 0:
        return ["1", "-1"]
    small = 1.0 if value.is_integer() and 1 < value < 100 else value / 10
    return [f"{other:.10g}" for other in (value * 2, value / 2, value + small, value - small)]


def _variants(kind: str, text: str) -> list[str]:
    match kind:
        case "duration":
            return _durations(text)
        case "number":
            return _numbers(text)
        case "compare":
            return list(COMPARISONS[text])
        case "set":
            return [SET_OPERATORS[text]]
        case _:
            return []


def expressions(expression: str) -> Iterator[tuple[str, str]]:
    """Yield (what was changed, the changed expression) for every single change of an expression."""
    for match in TOKEN.finditer(expression):
        start, end = match.span()
        line = expression.count("\n", 0, start) + 1
        for text in dict.fromkeys(_variants(str(match.lastgroup), match.group())):
            yield f"line {line}, {match.group()} -> {text}", expression[:start] + text + expression[end:]


def _changes(rule: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (key of the rule, what was changed, its changed text)."""
    if rule.get("alert") != "Watchdog":  # its number means nothing: it is there
        yield from (("expr", change, text) for change, text in expressions(rule["expr"]))
    if "for" in rule:
        yield from (("for", f"for {rule['for']} -> {text}", text) for text in _durations(rule["for"]))


def mutants() -> list[Mutant]:
    """Return every mutant of every rule, in the order of the files."""
    found: list[Mutant] = []
    for path in rule_files():
        for group in load(path)["groups"]:
            for rule in group["rules"]:
                labels = "/" + rule["labels"]["severity"] if "alert" in rule else ""
                name = rule.get("alert") or rule["record"]
                for key, change, text in _changes(rule):
                    found.append(Mutant(path, name, labels, change, rule | {key: text}, rule))
    return found


def _own_expectations(test: dict[str, Any], alert: str) -> dict[str, Any] | None:
    """Return a case reduced to what it says about one alert; None when it says nothing."""
    mark = f'alertname="{alert}"'
    is_own = test["name"].startswith(f"{alert} ")
    wanted: list[dict[str, Any]] = []
    for expectation in test["promql_expr_test"]:
        is_general = "alertname!~" in expectation["expr"] or "(ALERTS{alertstate=\"firing\"})" in expectation["expr"]
        if not is_general and mark not in expectation["expr"]:
            continue
        expression = expectation["expr"]
        if is_general:
            expression = f'count by (alertname, severity, priority) (ALERTS{{alertstate="firing", {mark}}})'
        samples = [
            sample for sample in expectation["exp_samples"] if not is_general or mark in sample["labels"]
        ]  # fmt: skip
        is_own = is_own or bool(samples)
        wanted.append(expectation | {"expr": expression, "exp_samples": samples})
    return test | {"promql_expr_test": wanted} if is_own and wanted else None


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML


def _rules_for(mutant: Mutant, *, is_changed: bool) -> dict[str, Any]:
    """Return the mutant beside its variants (an alert) or inside its file (recorded rules use each other)."""
    groups = []
    for group in load(mutant.path)["groups"]:
        rules = [
            mutant.rule if is_changed and rule == mutant.original else rule
            for rule in group["rules"]
            if "record" in mutant.original or rule.get("alert") == mutant.name
        ]
        groups.append(group | {"rules": rules})
    return {"groups": [group for group in groups if group["rules"]]}


@functools.cache
def _all_tests() -> tuple[dict[str, Any], ...]:
    return tuple(load(path) for path in sorted(UNIT_TESTS.glob("*.yaml")))


def _tests_for(mutant: Mutant) -> Iterator[dict[str, Any]]:
    for content in _all_tests():
        if mutant.path.name not in " ".join(content["rule_files"]):
            continue
        tests = content["tests"]
        if "alert" in mutant.original:
            tests = [own for test in tests if (own := _own_expectations(test, mutant.name)) is not None]
        else:
            tests = [test for test in tests if any(mutant.name in line["expr"] for line in test["promql_expr_test"])]
        if tests:
            yield content | {"rule_files": ["rules.json"], "tests": tests}


def passes(mutant: Mutant, folder: Path, *, is_changed: bool = True) -> bool:
    """Return whether the tests pass with the mutant (a survivor) or, unchanged, with the rule itself.

    Case by case until one fails, because a killed mutant needs no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "rules.json", _rules_for(mutant, is_changed=is_changed))
    cases = [content | {"tests": [test]} for content in _tests_for(mutant) for test in content["tests"]]
    if not cases:
        raise AssertionError(f"no test says anything about {mutant.name}")
    for case in cases:
        _write(folder / "case.json", case)
        done = subprocess.run(
            ["promtool", "test", "rules", "case.json"], cwd=folder, capture_output=True, text=True, check=False
        )  # fmt: skip
        if "error parsing" in done.stderr or 'group "' in done.stderr:
            raise AssertionError(f"{mutant}: not a rule: {done.stderr}")
        if done.returncode != 0:
            return False
    return True
