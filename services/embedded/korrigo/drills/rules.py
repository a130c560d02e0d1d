"""The shipped rules and settings of the alerting, in fast motion: every duration divided, nothing else changed.

A minute of the rules takes 3 seconds of a drill (decisions.md, Running). Divided are `for`, `interval` and
`keep_firing_for`, range and offset durations in expressions, the waits of Alertmanager, and the numbers that an age by
`time()` is compared with. Figures that are no time stay: 5 errors "per minute" are 5 errors in 3 seconds. Used
by `drills.watch`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from korrigo_kit.errors import Bug, Unavailable

FACTOR = 20
# The checkout that this module lies in; an installed wheel has none.
CHECKOUT = Path(__file__).resolve().parents[4]
_HOUR = 3_600_000
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": _HOUR, "d": 24 * _HOUR, "w": 168 * _HOUR, "y": 8760 * _HOUR}
_PIECE = re.compile(r"(\d+)(ms|[smhdwy])")
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
# What is looked over comes first: strings and comments may hold anything.
_TIMES = re.compile(
    r"""(?P<skipped>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`|\#[^\n]*)"""
    rf"|(?P<opening>\[\s*)(?P<range>{_DURATION})(?P<colon>\s*:\s*)?(?P<step>{_DURATION})?(?P<closing>\s*\])"
    rf"|(?P<offset>\boffset\s+-?\s*)(?P<by>{_DURATION})"
)
_AGE = re.compile(r"\A(?P<age>\s*time\(\)\s*-.+[<>]=?\s*)(?P<seconds>\d+(?:\.\d+)?)(?P<rest>\s*)\Z", re.DOTALL)
_RULE_TIMES = ("for", "keep_firing_for", "interval")
_WAITS = ("group_wait", "group_interval", "repeat_interval", "resolve_timeout")
_SCRAPE_TIMES = ("scrape_interval", "evaluation_interval", "scrape_timeout")


def checkout(name: str) -> Path:
    """Return a file or folder of the checkout; raises Unavailable NO_CHECKOUT."""
    path = CHECKOUT / name
    if not path.exists():
        raise Unavailable("NO_CHECKOUT", f"drills run from a checkout of Korrigo: {name} is not beside this program")
    return path


def load(path: Path) -> Any:
    """Read a YAML file."""
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def shipped() -> dict[str, Any]:
    """Return the shipped rule files by name, as they are."""
    return {path.name: load(path) for path in sorted(checkout("charts/korrigo/files/rules").glob("*.yaml"))}


def faster(text: str) -> str:
    """Divide one duration, such as 5m; raises Bug UNDIVIDED_DURATION for one that does not come out in milliseconds."""
    total = sum(int(number) * _MILLISECONDS[unit] for number, unit in _PIECE.findall(text))
    if _PIECE.sub("", text) not in ("", "0") or total % FACTOR:
        raise Bug("UNDIVIDED_DURATION", f"{text} cannot be divided by {FACTOR}")
    milliseconds = total // FACTOR
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def faster_expression(expression: str) -> str:
    """Divide the durations of an expression, and the seconds that an age is compared with.

    Raises Bug UNDIVIDED_AGE for an expression that uses time() in another form than `time() - … > SECONDS`.
    """
    divided = _TIMES.sub(_divided, expression)
    if "time()" not in _without_words(divided):
        return divided
    found = _AGE.match(divided)
    if found is None:
        raise Bug("UNDIVIDED_AGE", f"not of the form time() - … > seconds: {expression}")
    return f"{found['age']}{float(found['seconds']) / FACTOR:g}{found['rest']}"


def _divided(found: re.Match[str]) -> str:
    if found["skipped"] is not None:
        return found["skipped"]
    if found["offset"] is not None:
        return found["offset"] + faster(found["by"])
    step = faster(found["step"]) if found["step"] else ""
    return f"{found['opening']}{faster(found['range'])}{found['colon'] or ''}{step}{found['closing']}"


def _without_words(expression: str) -> str:
    return _TIMES.sub(lambda found: "" if found["skipped"] is not None else found[0], expression)


def faster_rules(file: Mapping[str, Any]) -> dict[str, Any]:
    """Divide every duration of a rule file."""
    return {"groups": [_faster_group(group) for group in file["groups"]]}


def _faster_group(group: Mapping[str, Any]) -> dict[str, Any]:
    rules = [_faster_keys(rule, _RULE_TIMES) | {"expr": faster_expression(rule["expr"])} for rule in group["rules"]]
    return _faster_keys(group, _RULE_TIMES) | {"rules": rules}


def _faster_keys(item: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: faster(value) if key in keys else value for key, value in item.items()}


def reach_seconds() -> dict[str, float]:
    """Tell for each alert how long after its cause it may still be told, in fast motion.

    That is its longest range, its `for`, and what Alertmanager waits for others of its group.
    """
    route = load(checkout("deploy/alertmanager.yml"))["route"]
    waits = _seconds(route["group_wait"]) + _seconds(route["group_interval"])
    found: dict[str, float] = {}
    for rule in (rule for file in shipped().values() for group in file["groups"] for rule in group["rules"]):
        if "alert" in rule:
            ranges = [_seconds(at["range"]) for at in _TIMES.finditer(rule["expr"]) if at["range"]]
            reach = (max(ranges, default=0.0) + _seconds(rule.get("for", "0s")) + waits) / FACTOR
            found[rule["alert"]] = max(reach, found.get(rule["alert"], 0.0))
    return found


def _seconds(text: str) -> float:
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in _PIECE.findall(text)) / 1000


def prometheus(*, target: str, alertmanager: str, rules: Path, is_fast: bool) -> dict[str, Any]:
    """Return deploy/prometheus.yml for these addresses (host:port) and this folder of rules."""
    config: dict[str, Any] = load(checkout("deploy/prometheus.yml"))
    if is_fast:
        config["global"] = _faster_keys(config["global"], _SCRAPE_TIMES)
    config["rule_files"] = [str(rules / "*.json")]
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager]}]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [target]}]
    return config


def alertmanager(*, product: str, receiver: str, token_file: Path, slack_file: Path) -> dict[str, Any]:
    """Return deploy/alertmanager.yml for these addresses (URLs) and secrets, divided.

    Besides the product and Slack, `receiver` is told what the product is told.
    """
    config: dict[str, Any] = _each_time(load(checkout("deploy/alertmanager.yml")), _WAITS, faster)
    for found in config["receivers"]:
        for hook in found.get("webhook_configs", []):
            hook["url"] = hook["url"].replace("http://127.0.0.1:8088", product)
            hook["http_config"]["authorization"]["credentials_file"] = str(token_file)
        if "webhook_configs" in found:
            found["webhook_configs"].append({"url": f"{receiver}/{found['name']}", "send_resolved": True})
        for hook in found.get("slack_configs", []):
            hook["api_url_file"] = str(slack_file)
    return config


def _each_time(item: Any, keys: tuple[str, ...], change: Callable[[str], str]) -> Any:
    if isinstance(item, dict):
        return {
            key: change(value) if key in keys and isinstance(value, str) else _each_time(value, keys, change)
            for key, value in item.items()
        }
    return [_each_time(value, keys, change) for value in item] if isinstance(item, list) else item
