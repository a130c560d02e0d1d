"""The port of a worker: /metrics, and whether it is well, for whoever keeps it alive."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

from harness.processes import free_port, wait_for
from korrigo_kit.settings import load
from korrigo_kit.telemetry.endpoint import Pulse, serve


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_port_tells_ready_alive_and_metrics() -> None:
    port = free_port()
    pulse = Pulse()
    serve(load(environ={"KORRIGO_HTTP__METRICS_PORT": str(port)}).http, pulse)
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="events", daemon=True)
    thread.start()
    pulse.watch([thread])
    status, body = ask(port, "/api/health/ready")
    assert status == 503 and "not begun" in body
    assert ask(port, "/api/health/live")[0] == 200
    pulse.is_ready.set()
    assert ask(port, "/api/health/ready/")[0] == 200
    status, body = ask(port, "/metrics")
    assert status == 200 and "korrigo_build_info" in body
    end.set()
    wait_for("the thread's end", lambda: not thread.is_alive(), seconds=20)
    status, body = ask(port, "/api/health/live")
    assert status == 503 and "events ended" in body
    assert ask(port, "/api/health/ready")[0] == 503


def test_a_thread_that_comes_round_no_more_is_told() -> None:
    pulse = Pulse(still_seconds=0)
    assert pulse.complaints() == []
    pulse.came_round()
    wait_for("the complaint", lambda: bool(pulse.complaints()), seconds=20)
    (complaint,) = pulse.complaints()
    assert threading.current_thread().name in complaint and "stands still" in complaint
