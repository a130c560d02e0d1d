"""Prometheus, Alertmanager and the receiver of a drill, on loopback, as long as the drill lasts.

The programs are the machine's own (Debian: `prometheus`, `prometheus-alertmanager`); their configuration is the
shipped one with other addresses (`drills.rules`). What arrives at the receiver is what people would have been told.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from korrigo.drills import rules
from korrigo.drills.patience import crowding
from korrigo.drills.programs import Program

WATCHDOG = "Watchdog"
# Units of Debian's packages.
PROMETHEUS, ALERTMANAGER = "prometheus", "prometheus-alertmanager"


@dataclass(frozen=True, slots=True)
class Told:
    """One alert of one notification; times are of the monotonic clock, `since` names the episode."""

    name: str
    labels: tuple[tuple[str, str], ...]
    is_firing: bool
    since: str
    at: float


class Inbox:
    """Collects what Alertmanager posts; several threads may ask."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._told: list[Told] = []
        self._changed = threading.Condition()
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()
                if "alerts" in body:  # Slack's messages repeat the same for people
                    inbox.take(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="inbox", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where Alertmanager posts to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, body: dict[str, Any]) -> None:
        """Note what one notification says of each of its alerts."""
        now = time.monotonic()
        with self._changed:
            with self._record.open("a") as file:
                file.write(json.dumps({"at": now, **body}) + "\n")
            for alert in body["alerts"]:
                labels = tuple(sorted(alert["labels"].items()))
                is_firing = alert["status"] == "firing"
                self._told.append(Told(alert["labels"]["alertname"], labels, is_firing, alert["startsAt"], now))
            self._changed.notify_all()

    def episodes(self) -> list[Told]:
        """List every alert that fired, once per episode, as it was told first."""
        seen: dict[tuple[Any, str], Told] = {}
        with self._changed:
            for told in self._told:
                if told.is_firing:
                    seen.setdefault((told.labels, told.since), told)
        return list(seen.values())

    def first(self, name: str, after: float) -> Told | None:
        """Return the first notification of an episode that was told after a moment."""
        return next((told for told in self.episodes() if told.name == name and told.at >= after), None)

    def resolved_at(self, name: str, after: float) -> float | None:
        """Tell when the last of this alert's episodes that were told after a moment ended; None while one lasts.

        By labels and not by episode: one that ends and comes back between two notifications is told as one.
        """
        wanted = {told.labels for told in self.episodes() if told.name == name and told.at >= after}
        last: dict[Any, Told] = {}
        with self._changed:
            for told in self._told:
                if told.labels in wanted:
                    last[told.labels] = told
        if not wanted or any(told.is_firing for told in last.values()):
            return None
        return max(told.at for told in last.values())

    def heard_at(self, name: str) -> float:
        """Tell when an alert was last told as firing; 0 for never."""
        with self._changed:
            return max((told.at for told in self._told if told.name == name and told.is_firing), default=0.0)

    def wait(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds of what was told; False when it did not in time."""
        began = time.monotonic()
        with self._changed:
            while not is_so():
                left = began + seconds * crowding() - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
        return True

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Watch:
    """The whole alerting of one instance, under the shipped rules or under the divided ones."""

    def __init__(self, folder: Path, product_url: str, token_file: Path) -> None:
        self._folder = folder
        self._product_url = product_url
        self._token_file = token_file
        # By the name of the unit, in the order of their start.
        self.programs: dict[str, Program] = {}
        self.data: dict[str, Path] = {}
        self.inbox = Inbox(folder / "notifications.jsonl")

    def look(self, *, is_fast: bool) -> None:
        """Start Alertmanager and Prometheus, with nothing remembered; those that ran are ended first."""
        self.look_away()
        folder = self._folder / ("fast" if is_fast else "shipped")
        (folder / "rules").mkdir(parents=True)
        self.data = {unit: folder / unit for unit in (ALERTMANAGER, PROMETHEUS)}
        self.programs[ALERTMANAGER] = self._alertmanager(folder)
        self.programs[PROMETHEUS] = self._prometheus(folder, is_fast)
        for program in self.programs.values():
            program.start()

    def _prometheus(self, folder: Path, is_fast: bool) -> Program:
        for name, file in rules.shipped().items():
            text = json.dumps(rules.faster_rules(file) if is_fast else file)
            (folder / "rules" / f"{Path(name).stem}.json").write_text(text)
        config = rules.prometheus(
            target=self._product_url.removeprefix("http://"),
            alertmanager=self.programs[ALERTMANAGER].url.removeprefix("http://"),
            rules=folder / "rules",
            is_fast=is_fast,
        )
        (folder / "prometheus.json").write_text(json.dumps(config))
        address = f"127.0.0.1:{_free_port()}"
        words = [
            f"--config.file={folder / 'prometheus.json'}",
            f"--storage.tsdb.path={self.data[PROMETHEUS]}",
            f"--web.listen-address={address}",
            # Prometheus tells again what fires once a minute; a divided minute.
            f"--rules.alert.resend-delay={rules.faster('1m') if is_fast else '1m'}",
        ]
        return Program((PROMETHEUS,), words, folder / "prometheus.log", f"http://{address}")

    def _alertmanager(self, folder: Path) -> Program:
        slack = folder / "slack-webhook"
        slack.write_text(f"{self.inbox.url}/slack")
        config = rules.alertmanager(
            product=self._product_url, receiver=self.inbox.url, token_file=self._token_file, slack_file=slack
        )
        (folder / "alertmanager.json").write_text(json.dumps(config))
        address = f"127.0.0.1:{_free_port()}"
        words = [
            f"--config.file={folder / 'alertmanager.json'}",
            f"--storage.path={self.data[ALERTMANAGER]}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ]
        return Program((ALERTMANAGER, "alertmanager"), words, folder / "alertmanager.log", f"http://{address}")

    def look_away(self) -> None:
        """End both."""
        while self.programs:
            _, program = self.programs.popitem()
            program.stop()

    def close(self) -> None:
        """End everything."""
        self.look_away()
        self.inbox.close()


def names(told: Iterable[Told]) -> list[str]:
    """Name alerts for people, each once, without the watchdog."""
    return sorted({found.name for found in told} - {WATCHDOG})
