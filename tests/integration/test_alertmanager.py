"""deploy/alertmanager.yml in a real Alertmanager: what reaches whom, with which secret, and what silences what.

Only addresses, secret files and waiting times are replaced; the routes, inhibitions and templates are the shipped ones.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.alerts import ROOT, rules
from harness.processes import Child, clean_environment, free_port, wait_for

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None, reason="prometheus-alertmanager (Debian) is missing"
)

TOKEN = "a-token-of-an-auditor"


@dataclass
class Inbox:
    """Whatever was posted to us: (path, authorization, body)."""

    received: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def alerts(self, path: str) -> dict[str, str]:
        """Return the alerts that the webhook was told, by name with their last status."""
        told: dict[str, str] = {}
        for where, _, body in self.received:
            if where == path:
                told |= {alert["labels"]["alertname"]: alert["status"] for alert in body["alerts"]}
        return told

    def titles(self) -> list[str]:
        """Return the titles of the Slack messages."""
        return [body["attachments"][0]["title"] for where, _, body in self.received if where == "/slack"]


@pytest.fixture
def inbox() -> Iterator[tuple[Inbox, int]]:
    kept = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kept.received.append((self.path, self.headers.get("Authorization", ""), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield kept, server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def alertmanager(inbox: tuple[Inbox, int], tmp_path: Path) -> Iterator[str]:
    port = free_port()
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "slack").write_text(f"http://127.0.0.1:{inbox[1]}/slack")
    text = (ROOT / "deploy" / "alertmanager.yml").read_text()
    text = text.replace("http://127.0.0.1:8088/", f"http://127.0.0.1:{inbox[1]}/")
    text = text.replace("/etc/korrigo/alertmanager-token", str(tmp_path / "token"))
    text = text.replace("/etc/korrigo/slack-webhook", str(tmp_path / "slack"))
    text = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", text)
    (tmp_path / "alertmanager.yml").write_text(text)
    words = [
        "prometheus-alertmanager", f"--config.file={tmp_path / 'alertmanager.yml'}", f"--storage.path={tmp_path}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    child = Child("alertmanager", words, tmp_path / "log", clean_environment())
    child.start()
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for("Alertmanager is ready", lambda: httpx.get(f"{base}/-/ready").is_success, seconds=30)
        yield base
    finally:
        child.stop()
    assert "level=error" not in child.tail(1000), child.tail()


def _post(base: str, *names: str, **extra: str) -> None:
    """Post alerts as Prometheus would: the shipped labels and annotations; `Name/severity` picks a variant."""
    body = []
    for text in names:
        name, _, severity = text.partition("/")
        rule = next(
            rule for rule in rules("alert") if rule["alert"] == name and severity in ("", rule["labels"]["severity"])
        )  # fmt: skip
        body.append({"labels": {"alertname": name, **rule["labels"], **extra}, "annotations": rule["annotations"]})
    httpx.post(f"{base}/api/v2/alerts", json=body).raise_for_status()


def _silenced(base: str) -> set[str]:
    """Return the alerts that are held back by others, as name/severity."""
    found = httpx.get(f"{base}/api/v2/alerts").json()
    return {
        f"{alert['labels']['alertname']}/{alert['labels']['severity']}"
        for alert in found
        if alert["status"]["inhibitedBy"]
    }


def test_a_page_reaches_slack_and_the_product_with_its_token(inbox: tuple[Inbox, int], alertmanager: str) -> None:
    kept, _ = inbox
    _post(alertmanager, "AuditChainBroken", "LockConflictsHigh", "Watchdog")
    told = wait_for(
        "three alerts",
        lambda: told if len(told := kept.alerts("/api/ops/alerts")) == 3 else None,
        seconds=30,
    )
    assert set(told.values()) == {"firing"}
    assert {authorization for path, authorization, _ in kept.received if path != "/slack"} == {f"Bearer {TOKEN}"}
    wait_for("Slack", kept.titles, seconds=30)
    # P3 and the watchdog are nobody's Slack message.
    assert kept.titles() == ["P0: AuditChainBroken"]
    message = next(body for path, _, body in kept.received if path == "/slack")["attachments"][0]
    assert message["color"] == "danger"
    for part in ("The audit trail does not verify", "First: Touch nothing", "/runbooks/audit-chain|Runbook"):
        assert part in message["text"]


INHIBITED = {
    ("DatabaseDown", "AuditChainBroken", "ImportStuck/critical", "SweeperStale", "TargetDown", "LatencyDegraded"): {
        "AuditChainBroken/critical", "ImportStuck/critical", "SweeperStale/critical", "TargetDown/critical",
        "LatencyDegraded/info",
    },
    ("DatabaseDown", "Watchdog", "BrokerDown"): {"BrokerDown/critical"},
    ("WorkersDown", "ImportStuck/warning", "ImportStuck/critical", "QueueBacklog/warning", "FinalizationStuck"): {
        "ImportStuck/warning", "ImportStuck/critical", "QueueBacklog/warning",
    },
    ("BrokerDown", "ImportStuck/critical", "FinalizationStuck", "QueueBacklog/info", "FinalizationRetriesExhausted"): {
        "ImportStuck/critical", "FinalizationStuck/warning", "QueueBacklog/info",
    },
    ("ImportStuck/critical", "ImportStuck/warning", "OCRErrorsHigh"): {"ImportStuck/warning"},
    ("QueueBacklog/warning", "QueueBacklog/info"): {"QueueBacklog/info"},
    ("DiskSpaceCritical", "DiskSpaceLow", "TempUploadsLarge"): {"DiskSpaceLow/warning"},
    ("HighLatency", "LatencyDegraded", "DatabaseSlowQueries"): {"LatencyDegraded/info"},
    ("ErrorBudgetBurnFast", "ErrorBudgetBurnSlow"): {"ErrorBudgetBurnSlow/warning"},
}  # fmt: skip


def test_causes_silence_their_consequences(alertmanager: str) -> None:
    for names, silenced in INHIBITED.items():
        _post(alertmanager, *names)
        wait_for(f"{names[0]} silences", lambda: _silenced(alertmanager), seconds=30)
        assert _silenced(alertmanager) == silenced
        _resolve_all(alertmanager)


def test_another_queue_is_not_silenced_by_a_worse_one(alertmanager: str) -> None:
    _post(alertmanager, "QueueBacklog/warning", queue="ingest")
    _post(alertmanager, "QueueBacklog/info", queue="render")
    _post(alertmanager, "QueueBacklog/info", queue="ingest")
    wait_for("the milder one of the same queue is held back", lambda: len(_inhibited_queues(alertmanager)), seconds=30)
    assert _inhibited_queues(alertmanager) == ["ingest"]


def _inhibited_queues(base: str) -> list[str]:
    found = httpx.get(f"{base}/api/v2/alerts").json()
    return [alert["labels"]["queue"] for alert in found if alert["status"]["inhibitedBy"]]


def _resolve_all(base: str) -> None:
    found = httpx.get(f"{base}/api/v2/alerts").json()
    ended = [
        {"labels": alert["labels"], "startsAt": alert["startsAt"], "endsAt": alert["updatedAt"]} for alert in found
    ]
    httpx.post(f"{base}/api/v2/alerts", json=ended).raise_for_status()
    wait_for("all alerts ended", lambda: httpx.get(f"{base}/api/v2/alerts").json() == [], seconds=30)
