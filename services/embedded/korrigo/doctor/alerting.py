"""`korrigo doctor monitoring`: from the rules to the receiver, step by step, with a test alert that pages nobody.

The alert has severity none and takes the route of the watchdog. That it arrived is told by a webhook that we listen on
ourselves, when an address is given that Alertmanager sends to: that is certain. Else Alertmanager's own counters tell
whether it got rid of a notification, and beside other alerts that is a good guess.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from korrigo.doctor.monitors import PATIENCE_SECONDS, Monitors, get, get_json, problem
from korrigo_kit.errors import Invalid, Unavailable
from korrigo_kit.ids import new_id

ALERT = "KorrigoTestAlert"
_LOOK_SECONDS = 0.5
# It ends by itself, should we be killed before we take it back.
_LIFE = timedelta(minutes=5)
# Counted after each request; alertmanager_notifications_total is counted before the first, whatever becomes of it.
_COUNTER = re.compile(r"^alertmanager_notification_requests(_failed)?_total(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)
# So many requests that failed one after another are an answer; one is repeated at once.
_FAILURES = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way; `is_ok` None = could not be told."""

    name: str
    is_ok: bool | None
    text: str


def examine(monitors: Monitors, *, listen: str = "", wait_seconds: float = 60) -> list[Step]:
    """Walk the way of an alert; the last step is the test alert's arrival."""
    return [*_prometheus(monitors), *_alert(monitors.alertmanager.rstrip("/"), listen, wait_seconds)]


def _prometheus(monitors: Monitors) -> Iterator[Step]:
    base = monitors.prometheus.rstrip("/")
    if not base:
        yield Step("prometheus", None, "KORRIGO_MONITORING__PROMETHEUS_URL is not set")
        return
    text = problem(base, "/-/ready")
    yield Step("prometheus", not text, text or f"{base} is ready")
    if text:
        return
    firing = monitors.query('ALERTS{alertname="Watchdog",alertstate="firing"}')
    yield Step("rules", bool(firing), "Watchdog fires" if firing else "Watchdog does not fire: the rules do not run")
    try:
        active = get_json(f"{base}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    except (OSError, ValueError, KeyError):
        active = []
    known = ", ".join(str(item.get("url")) for item in active)
    yield Step("connection", bool(active), f"it sends to {known}" if known else "it knows no Alertmanager")


def _alert(base: str, listen: str, wait_seconds: float) -> Iterator[Step]:
    text = problem(base, "/-/ready")
    yield Step("alertmanager", not text, text or f"{base} is ready")
    if text:
        yield Step("test alert", False, "not sent")
        return
    with _listener(listen) as heard:
        before = _notifications(base)
        test_id = new_id()
        started = time.monotonic()
        _post(base, test_id, datetime.now(UTC) + _LIFE)
        try:
            yield _arrival(base, test_id, heard, before, started, wait_seconds)
        finally:
            _post(base, test_id, datetime.now(UTC))


def _arrival(
    base: str, test_id: str, heard: list[Any] | None, before: dict[str, float], started: float, wait_seconds: float
) -> Step:
    state = "Alertmanager does not show it"
    last = before
    while (passed := time.monotonic() - started) < wait_seconds:
        receivers = _active(base, test_id)
        if heard is not None and any(_names(body, test_id) for body in heard):
            return Step("test alert", True, f"arrived at the webhook after {passed:.1f} s")
        if receivers is not None:
            state = f"active, for receiver {', '.join(receivers) or '?'}"
            if heard is None:
                now = _notifications(base)
                told = _told(before, now, state, passed)
                # The two counters are not written together: believe what two looks agree on.
                if told is not None and now == last:
                    return told
                last = now
        time.sleep(_LOOK_SECONDS)
    return Step("test alert", False, f"nothing arrived within {wait_seconds:g} s; {state}")


def _told(before: dict[str, float], now: dict[str, float], state: str, passed: float) -> Step | None:
    """Read from the counters whether a notification went out; those of other alerts are counted with ours."""
    failed = now["failed"] - before["failed"]
    sent = now["all"] - before["all"] - failed
    if sent > 0:
        return Step("test alert", True, f"{state}; notified after {passed:.1f} s")
    if failed >= _FAILURES:
        return Step("test alert", False, f"{state}; {failed:.0f} requests to it failed: see Alertmanager's log")
    return None


def _notifications(base: str) -> dict[str, float]:
    found = {"all": 0.0, "failed": 0.0}
    _, body = get(f"{base}/metrics")
    for failed, number in _COUNTER.findall(body.decode(errors="replace")):
        found["failed" if failed else "all"] += float(number)
    return found


def _active(base: str, test_id: str) -> list[str] | None:
    try:
        alerts = get_json(f"{base}/api/v2/alerts")
    except (OSError, ValueError):
        return None
    for alert in alerts:
        if alert["labels"].get("test_id") == test_id:
            return [receiver["name"] for receiver in alert.get("receivers", [])]
    return None


def _names(body: Any, test_id: str) -> bool:
    alerts = body.get("alerts", []) if isinstance(body, dict) else []
    return any(alert.get("labels", {}).get("test_id") == test_id for alert in alerts)


def _post(base: str, test_id: str, ends_at: datetime) -> None:
    body = [
        {
            "labels": {
                "alertname": ALERT,
                "severity": "none",
                "priority": "none",
                "scenario": "monitoring",
                "test_id": test_id,
            },
            "annotations": {"summary": "A test of the way that alerts take; nothing is wrong."},
            "endsAt": ends_at.isoformat(),
        }
    ]
    request = urllib.request.Request(  # noqa: S310 - its /-/ready was asked before
        f"{base}/api/v2/alerts", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS):  # noqa: S310 - as above
            return
    except OSError as error:
        raise Unavailable("ALERTMANAGER_UNAVAILABLE", f"{base} does not take an alert: {error}") from error


@contextmanager
def _listener(address: str) -> Iterator[list[Any] | None]:
    """Stand in for a webhook receiver; gives what was posted, None without an address."""
    if not address:
        yield None
        return
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise Invalid("INVALID_ADDRESS", f"an address is HOST:PORT, such as 127.0.0.1:9099: {address}")
    heard: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                heard.append(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))
            except ValueError:
                self.send_error(400)
                return
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    try:
        server = ThreadingHTTPServer((host or "127.0.0.1", int(port)), Handler)
    except OSError as error:
        raise Unavailable("PORT_IN_USE", f"cannot listen on {address}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
