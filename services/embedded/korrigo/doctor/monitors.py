"""Prometheus and Alertmanager as `korrigo doctor` asks them: plain GETs with little patience, absence is an answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

PATIENCE_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Monitors:
    """Their addresses; empty = there is none that we know of."""

    prometheus: str = ""
    alertmanager: str = ""

    def increase(self, metric: str, seconds: int = 900) -> float | None:
        """Ask Prometheus by how much a counter grew, over all its series; None when it cannot tell."""
        found = self.query(f"sum(increase({metric}[{seconds}s]))")
        return found[0][1] if found else None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now; nothing when Prometheus cannot tell."""
        if not self.prometheus:
            return []
        try:
            words = urllib.parse.urlencode({"query": expression})
            answer = get_json(f"{self.prometheus.rstrip('/')}/api/v1/query?{words}")
            return [(item["metric"], float(item["value"][1])) for item in answer["data"]["result"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def get(url: str, seconds: float = PATIENCE_SECONDS) -> tuple[int, bytes]:
    """GET; returns status and body. Raises OSError when nobody answers."""
    if not url.startswith(("http://", "https://")):
        raise OSError(f"{url} is no address of HTTP")
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:  # noqa: S310 - checked
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def get_json(url: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """GET a JSON document; raises OSError and ValueError."""
    status, body = get(url, seconds)
    if status >= 400:
        raise OSError(f"{url} answers {status}")
    return json.loads(body)


def problem(url: str, path: str) -> str:
    """Say why a part does not answer; empty when it does."""
    try:
        status, _ = get(url.rstrip("/") + path)
    except OSError as error:
        return f"{url} does not answer: {getattr(error, 'reason', None) or error}"
    return "" if status < 400 else f"{url}{path} answers {status}"
