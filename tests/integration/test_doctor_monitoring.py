"""`korrigo doctor monitoring` with a real Alertmanager: arrived, notified, failed; and nobody is paged by it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.alerts import ROOT
from harness.processes import Child, clean_environment, free_port, wait_for

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None, reason="prometheus-alertmanager (Debian) is missing"
)


class Alertmanager:
    """The shipped configuration, with our addresses and short waits."""

    def __init__(self, folder: Path) -> None:
        self.receiver = free_port()
        self.base = f"http://127.0.0.1:{free_port()}"
        (folder / "token").write_text("x")
        (folder / "slack").write_text(f"http://127.0.0.1:{self.receiver}/slack")
        text = (ROOT / "deploy" / "alertmanager.yml").read_text()
        text = text.replace("http://127.0.0.1:8088/", f"http://127.0.0.1:{self.receiver}/")
        text = text.replace("/etc/korrigo/alertmanager-token", str(folder / "token"))
        text = text.replace("/etc/korrigo/slack-webhook", str(folder / "slack"))
        text = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", text)
        (folder / "alertmanager.yml").write_text(text)
        words = [
            "prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder}",
            f"--web.listen-address={self.base.removeprefix('http://')}", "--cluster.listen-address=",
        ]  # fmt: skip
        self.child = Child("alertmanager", words, folder / "log", clean_environment())

    def examine(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run the command; returns its exit code and answer."""
        argv = [sys.executable, "-m", "korrigo", "doctor", "monitoring", "--alertmanager", self.base, "--json", *words]
        env = clean_environment() | {"KORRIGO_HOME": "/nonexistent/home"}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    """One that runs."""
    made = Alertmanager(tmp_path)
    made.child.start()
    try:
        wait_for("Alertmanager is ready", lambda: httpx.get(f"{made.base}/-/ready").is_success, seconds=60)
        yield made
    finally:
        made.child.stop()


def _last(answer: dict[str, Any]) -> dict[str, Any]:
    step = answer["steps"][-1]
    assert step["name"] == "test alert"
    return dict(step)


def test_the_alert_arrives_pages_nobody_and_is_taken_back(alertmanager: Alertmanager) -> None:
    code, answer = alertmanager.examine("--listen", f"127.0.0.1:{alertmanager.receiver}", "--wait", "60")
    assert code == 0 and answer["arrived"] is True, answer
    assert "arrived at the webhook" in _last(answer)["text"]
    # the receivers that page are Slack and the incident webhook: it reached the watchdog's alone
    listed = httpx.get(f"{alertmanager.base}/api/v2/alerts").json()
    assert [alert for alert in listed if alert["labels"]["alertname"] == "KorrigoTestAlert"] == []
    told = httpx.get(f"{alertmanager.base}/metrics").text
    assert re.search(r'^alertmanager_notifications_total\{integration="slack"\} 0$', told, re.MULTILINE)


def test_without_an_address_its_counters_tell(alertmanager: Alertmanager) -> None:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", alertmanager.receiver), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        code, answer = alertmanager.examine("--wait", "60")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert code == 0 and answer["arrived"] is True, answer
    assert "for receiver watchdog; notified" in _last(answer)["text"]


def test_a_receiver_that_is_away_is_told(alertmanager: Alertmanager) -> None:
    code, answer = alertmanager.examine("--wait", "45")
    assert code == 9 and answer["arrived"] is False, answer
    assert re.search("failed|nothing arrived", _last(answer)["text"])


def test_no_alertmanager_is_told(alertmanager: Alertmanager) -> None:
    alertmanager.child.stop()
    code, answer = alertmanager.examine()
    assert code == 9 and _last(answer)["text"] == "not sent"
