"""The gateway streams, routes by the longest prefix, and shows a broken room as broken; the keeper restarts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from harness.client import Client, Refused
from harness.gateway import Routes
from harness.processes import Child, clean_environment, free_port, kill_hard, listens, wait_for
from harness.production import Keeper


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/api/scans/cut":
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"short")
            self.close_connection = True
            return
        body = f"{self.connection.getsockname()[1]} {self.path}".encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        length, got = int(self.headers["Content-Length"]), 0
        while got < length:
            got += len(self.rfile.read(min(65536, length - got)))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (str(got).encode(), b" bytes"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[tuple[str, int, int]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Echo) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    grading, ingest = (server.server_port for server in servers)
    port = free_port()
    env = clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    argv = [sys.executable, "-m", "harness.gateway", str(port)]
    argv += [f"/={grading}", f"/api/scans={ingest}", f"/api/audit={free_port()}"]
    child = Child("gateway", argv, tmp_path / "gateway.log", env)
    child.start()
    wait_for("the gateway", lambda: listens(port), seconds=20)
    yield f"http://127.0.0.1:{port}", grading, ingest
    child.kill()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_routes_match_whole_segments() -> None:
    routes = Routes([("/", 1), ("/api/scans", 2), ("/verify", 3)])
    paths = ("/", "/api/scan", "/api/scans", "/api/scans/1", "/api/scansx", "/verify/x")
    assert [routes.port(path) for path in paths] == [1, 1, 2, 2, 1, 3]


def test_gateway_routes_streams_and_breaks_honestly(gateway: tuple[str, int, int]) -> None:
    url, grading, ingest = gateway
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/api/exams?x=1").text == f"{grading} /api/exams?x=1"
        assert client.get("/api/scans/1").text == f"{ingest} /api/scans/1"
        assert client.post("/api/scans", content=b"x" * 5_000_000).text == "5000000 bytes"
        assert client.get("/api/audit/copies/1").status_code == 502
        with pytest.raises(httpx.TransportError):
            client.get("/api/scans/cut")


def test_the_client_gives_up_after_its_patience(gateway: tuple[str, int, int]) -> None:
    with Client(gateway[0], patience_seconds=1) as client:
        with pytest.raises(Refused) as refused:
            client.send("GET", "/api/audit/x")
        assert refused.value.status == 502 and client.retries >= 2


def test_the_keeper_restarts_what_dies(tmp_path: Path) -> None:
    keeper = Keeper()
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nwhile True: signal.pause()"
    keeper.add(Child("work-x", [sys.executable, "-c", code], tmp_path / "x.log", clean_environment()))
    (first,) = keeper.living("work-.*")
    kill_hard(first)
    second = wait_for("a restart", lambda: [p for p in keeper.living("work-.*") if p != first], seconds=10)
    assert second != [first] and keeper.kept["work-x"].restarts == 1
    assert keeper.stop(seconds=10).keys() == {"work-x"}
