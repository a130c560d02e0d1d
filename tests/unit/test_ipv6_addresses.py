"""IPv6 hosts stand in brackets wherever an address becomes a URL or a Host header."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit

import pytest

from korrigo import probes
from korrigo.commands.up import Address
from korrigo_kit.addresses import in_url
from korrigo_kit.rest import app, edge
from korrigo_kit.settings import load
from korrigo_operator.settings import SECTIONS, OperatorSettings


def _operator(**given: str) -> OperatorSettings:
    return load(SECTIONS, {f"KORRIGO_OPERATOR__{key}": value for key, value in given.items()}).get(OperatorSettings)


def test_only_ipv6_addresses_are_bracketed() -> None:
    given = ["0.0.0.0", "::", "::1", "[::1]", "korrigo.example.org"]
    assert [in_url(host) for host in given] == ["0.0.0.0", "[::]", "[::1]", "[::1]", "korrigo.example.org"]


@pytest.mark.parametrize("host", ["::", "::1", "0.0.0.0", "127.0.0.1"])
def test_the_liveness_endpoint_is_one_that_kopf_takes_apart(host: str) -> None:
    parts = urlsplit(_operator(HEALTH_HOST=host).liveness or "")
    assert (parts.hostname, parts.port, parts.path) == (host, 8081, "/healthz")
    assert _operator(HEALTH_HOST=host, HEALTH_PORT="0").liveness is None


def test_up_tells_an_address_that_a_browser_takes() -> None:
    told = [Address("http", host, 8088).url for host in ("::", "::1", "fd00::5", "127.0.0.1")]
    hosts = ("[::1]", "[::1]", "[fd00::5]", "127.0.0.1")
    assert told == [f"http://{host}:8088" for host in hosts]


def test_names_are_allowed_as_the_host_header_has_them() -> None:
    environ = {"KORRIGO_HTTP__HOST": "fd00::5", "KORRIGO_HTTP__PUBLIC_URL": "https://[2001:db8::1]:8443/"}
    assert app._allowed_hosts(load(environ=environ).http) == {*edge.LOOPBACK_HOSTS, "[fd00::5]", "[2001:db8::1]"}


def test_the_supervisor_asks_with_a_host_that_the_edge_lets_in() -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    heard: list[bytes] = []

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            heard.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    thread = threading.Thread(target=answer)
    port = server.getsockname()[1]
    with server:
        thread.start()
        assert probes.answers_http("::1", port, "/api/health/ready")
        thread.join(10)
    (host,) = [line.partition(": ")[2] for line in heard[0].decode().splitlines() if line.startswith("Host")]
    assert host == f"[::1]:{port}"
    assert host.rpartition(":")[0] in edge.LOOPBACK_HOSTS
