"""What holds for every request before any endpoint sees it: Host, Origin, CSRF, sizes, ids, headers, methods."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from harness.client import Client, Json
from harness.instance import Instance

# One process serves all rooms there; in production the same code stands in front of each.
pytestmark = pytest.mark.parametrize("instance", ["embedded"], indirect=True)

MIB = 1 << 20
JSON_TYPE = {"Content-Type": "application/json"}
EXAM: Json = {
    "name": "Edge", "date": "2026-01-12", "max_score": 20,
    "grading_structure": [{"id": "q1", "label": "Q1", "points": 20}],
}  # fmt: skip
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def problem(response: httpx.Response, status: int, reason: str) -> None:
    """Assert that an answer is this problem."""
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json"), (
        response.text[:300]
    )
    found = response.json()
    assert (found["reason"], found["request_id"]) == (reason, response.headers["X-Request-ID"])


@pytest.fixture
def browser(instance: Instance, admin: Client) -> Iterator[httpx.Client]:
    """A session by cookie, as a browser has it."""
    with httpx.Client(base_url=instance.url, timeout=30, trust_env=False) as made:
        answer = made.post("/api/login", json={"username": "admin", "password": instance.admin_password})
        assert answer.status_code == 200
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and "Path=/" in cookie
        assert answer.headers["Cache-Control"] == "no-store"
        yield made


def raw(instance: Instance, request: bytes) -> bytes:
    """Send bytes as they are and return the head of the answer."""
    parts = urlsplit(instance.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(request)
        head = b""
        while b"\r\n\r\n" not in head and (chunk := connection.recv(65536)):
            head += chunk
    return head.partition(b"\r\n\r\n")[0]


# ------------------------------------------------------------------------------------------- Host, Origin, CSRF
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "", "127.0.0.2"]
)
def test_a_name_that_is_not_ours_is_refused(instance: Instance, admin: Client, host: str) -> None:
    """A page that points its own name at this machine reads nothing (DNS rebinding)."""
    name = host.format(port=urlsplit(instance.url).port)
    for method, path in (("GET", "/api/me"), ("GET", "/metrics"), ("POST", "/api/login"), ("GET", "/"), ("GET", "/x")):
        problem(admin.http.request(method, path, headers={"Host": name}), 421, "HOST_NOT_ALLOWED")
    assert raw(instance, b"GET /api/health HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost:99", "[::1]:8088", "127.0.0.1:1"])
def test_our_own_names_are_known(admin: Client, host: str) -> None:
    assert admin.http.get("/api/me", headers={"Host": host}).status_code == 200


def test_a_cookie_alone_changes_nothing(browser: httpx.Client, admin: Client) -> None:
    before = len(admin.items("/api/exams"))
    assert browser.get("/api/me").status_code == browser.head("/api/me").status_code == 200
    token = browser.get("/api/csrf").json()["csrf_token"]
    problem(browser.post("/api/exams", json=EXAM), 403, "CSRF_TOKEN_INVALID")
    for wrong in (b"", token[:-1].encode(), "é".encode(), token.encode() + b"x"):
        answer = browser.post("/api/exams", json=EXAM, headers={b"X-CSRF-Token": wrong})
        problem(answer, 403, "CSRF_TOKEN_INVALID")
    for method, path in (("PATCH", f"/api/users/{admin.user['id']}"), ("POST", "/api/logout")):
        problem(browser.request(method, path, json={}), 403, "CSRF_TOKEN_INVALID")
    assert len(admin.items("/api/exams")) == before
    assert browser.post("/api/exams", json=EXAM, headers={"X-CSRF-Token": token}).status_code == 201
    # a token goes with its own session only
    other = httpx.Client(base_url=browser.base_url, cookies=browser.cookies, trust_env=False)
    with other:
        assert other.get("/api/csrf").json()["csrf_token"] == token
    login = admin.http.get("/api/csrf").json()["csrf_token"]
    assert login != token
    problem(browser.post("/api/exams", json=EXAM, headers={"X-CSRF-Token": login}), 403, "CSRF_TOKEN_INVALID")


def test_a_bearer_needs_no_csrf_token(browser: httpx.Client, admin: Client) -> None:
    headers = {"Authorization": admin.http.headers["Authorization"]}
    assert browser.post("/api/exams", json=EXAM, headers=headers).status_code == 201
    # but a wrong bearer is not saved by the cookie beside it
    problem(browser.get("/api/me", headers={"Authorization": "Bearer x.y.z"}), 401, "INVALID_TOKEN")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example", "http://127.0.0.1:1"]
)
def test_a_page_of_another_site_changes_nothing(browser: httpx.Client, origin: str) -> None:
    token = browser.get("/api/csrf").json()["csrf_token"]
    headers = {"X-CSRF-Token": token, "Origin": origin}
    problem(browser.post("/api/exams", json=EXAM, headers=headers), 403, "ORIGIN_NOT_ALLOWED")
    read = browser.get("/api/csrf", headers={"Origin": origin})
    assert not [name for name in read.headers if name.lower().startswith("access-control-")]
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-csrf-token",
    }
    preflight = browser.options("/api/exams", headers=asked)
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.lower().startswith("access-control-")]


def test_our_own_page_may_change_things(browser: httpx.Client) -> None:
    own = f"{browser.base_url.scheme}://{browser.base_url.host}:{browser.base_url.port}"
    headers = {"X-CSRF-Token": browser.get("/api/csrf").json()["csrf_token"], "Origin": own}
    assert browser.post("/api/exams", json=EXAM, headers=headers).status_code == 201


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_form_of_another_site_logs_nobody_in(instance: Instance, admin: Client, kind: str | None) -> None:
    """Content types that a form can send without asking are not read as JSON."""
    content = json.dumps({"username": "admin", "password": instance.admin_password}).encode()
    with httpx.Client(base_url=instance.url, trust_env=False) as nobody:
        answer = nobody.post("/api/login", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == 422 and "Set-Cookie" not in answer.headers


# ------------------------------------------------------------------------------------------------------- bodies
def _chunks(total: int) -> Iterator[bytes]:
    for _ in range(total // 65536):
        yield b" " * 65536


@pytest.mark.parametrize("path", ["/api/login", "/api/exams", "/api/logout"])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
def test_a_body_beyond_a_mebibyte_is_refused(admin: Client, path: str, kind: str) -> None:
    """Also when it names no length, and whatever it claims to be: only an endpoint that takes a file takes more."""
    if path == "/api/logout":  # takes no body and reads none; the length alone is enough to refuse it
        answer = admin.http.post(path, content=b" " * (MIB + 1), headers=JSON_TYPE)
        problem(answer, 413, "BODY_TOO_LARGE")
        return
    problem(admin.http.post(path, content=_chunks(2 * MIB), headers={"Content-Type": kind}), 413, "BODY_TOO_LARGE")
    answer = admin.http.post(path, content=b" " * (MIB + 1), headers={"Content-Type": kind})
    problem(answer, 413, "BODY_TOO_LARGE")
    within = admin.http.post(path, content=b" " * MIB, headers=JSON_TYPE)
    problem(within, 400, "UNPARSABLE")


def test_uploads_take_more_and_are_bounded_too(admin: Client) -> None:
    exam = admin.create_exam("Edge upload")
    data = b"%PDF-1.4\n" + b"x" * (3 * MIB)
    answer = admin.http.post(
        "/api/scans", params={"exam_id": exam["id"]}, files={"file": ("a.pdf", data, "application/pdf")}
    )
    assert answer.status_code == 202, answer.text
    head = b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield head
        for _ in range(110):
            yield b"y" * MIB

    # a part that nobody asked for is no way around the limit
    refused = admin.http.post(
        "/api/scans",
        params={"exam_id": exam["id"]},
        content=endless(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        timeout=120,
    )
    problem(refused, 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("depth", [40, 400, 5000, 100_000])
def test_deep_json_is_refused(admin: Client, depth: int) -> None:
    nested = '{"id":"q","label":"l","children":[' * min(depth, 20_000) + "]}" * min(depth, 20_000)
    bodies = [
        "[" * depth + "]" * depth,
        '{"a":' * depth + "1" + "}" * depth,
        f'{{"name":"x","date":"2026-01-12","max_score":1,"grading_structure":[{nested}]}}',
    ]
    for body in bodies:
        answer = admin.http.post("/api/exams", content=body.encode(), headers=JSON_TYPE)
        assert answer.status_code in (400, 413, 422), answer.text[:200]
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert admin.send("GET", "/api/me").status_code == 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e400"])
def test_numbers_beyond_json_are_refused(admin: Client, number: str) -> None:
    before = len(admin.items("/api/exams"))
    for field in ("max_score", "points"):
        text = json.dumps(EXAM).replace(f'"{field}": 20', f'"{field}": {number}')
        assert number in text
        answer = admin.http.post("/api/exams", content=text.encode(), headers=JSON_TYPE)
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["request_id"]
    assert len(admin.items("/api/exams")) == before


# -------------------------------------------------------------------------------------- ids, headers, methods
@pytest.mark.parametrize("given", ["12345678", "abc-DEF_123.x", "x" * 64])
def test_a_good_request_id_is_kept(admin: Client, given: str) -> None:
    for path in ("/api/me", "/api/nowhere", "/metrics"):
        assert admin.http.get(path, headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given",
    [b"short", b"x" * 65, b"with space", b"semi;colon", b'quote"quote', b"tab\there", b"{json}:1", "émile-01".encode(),
     b"%0d%0aforged", b"${jndi:ldap}", b"a" * 4000],
)  # fmt: skip
def test_a_bad_request_id_is_replaced(instance: Instance, admin: Client, given: bytes) -> None:
    """Nobody writes a line of his own into a log."""
    made = admin.http.get("/api/me", headers={b"X-Request-ID": given}).headers["X-Request-ID"]
    assert made.encode() != given and len(made) == 32 and made.isalnum()
    forged = b"abcdefgh\r\nX-Forged: 1"
    head = raw(
        instance,
        b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-ID: " + forged + b"\r\n\r\n",
    )
    assert head.startswith(b"HTTP/1.1 200") and b"forged" not in head.lower()


def test_every_answer_has_the_security_headers(admin: Client) -> None:
    answers = [
        admin.http.get("/"),
        admin.http.get("/api/docs"),
        admin.http.get("/api/openapi.json"),
        admin.http.get("/metrics"),
        admin.http.get("/api/exams"),
        admin.http.get("/api/nowhere"),
        admin.http.delete("/api/exams"),
        admin.http.post("/api/exams", content=b"{", headers=JSON_TYPE),
        admin.http.post("/api/exams", content=b" " * (MIB + 1), headers=JSON_TYPE),
        admin.http.get("/api/me", headers={"Host": "evil.example"}),
        httpx.get(f"{admin.url}/api/me", timeout=10),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 404, 405, 400, 413, 421, 401]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY, answer.request.url
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert len(answer.headers["X-Request-ID"]) >= 8
        assert not {"server", "x-powered-by"} & {name.lower() for name in answer.headers}


def test_figures_are_not_for_the_world(admin: Client) -> None:
    """Prometheus asks the process itself; what came through a gateway is somebody from outside."""
    assert admin.http.get("/metrics").status_code == 200
    problem(admin.http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7"}), 404, "NOT_FOUND")
    assert admin.http.get("/api/me", headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 200


def test_head_is_get_without_its_body_and_slashes_do_not_matter(admin: Client) -> None:
    document = admin.json("GET", "/api/openapi.json")
    paths = ["/", "/metrics", "/api/docs", "/api/openapi.json"]
    paths += [path for path, item in document["paths"].items() if "get" in item and "{" not in path]
    assert len(paths) > 10
    for path in paths:
        plain = admin.http.get(path)
        head = admin.http.head(path)
        assert plain.status_code == head.status_code == 200, path
        assert head.content == b"" and head.headers["Content-Type"] == plain.headers["Content-Type"]
        for slashed in (f"{path.rstrip('/')}/", f"{path.rstrip('/')}//"):
            answer = admin.http.get(slashed)
            assert (answer.status_code, answer.is_redirect) == (200, False), slashed
    for method, path in (("POST", "/api/login/"), ("POST", "/api/exams/"), ("POST", "/api/logout/")):
        answer = httpx.request(method, admin.url + path, json={}, timeout=10)
        assert answer.status_code in (401, 422), path


def test_odd_requests_get_an_answer_and_no_server_error(instance: Instance) -> None:
    host = b"Host: localhost\r\nConnection: close\r\n"
    lines = (
        "OPTIONS * HTTP/1.1", "GET // HTTP/1.1", "GET //evil.example/ HTTP/1.1", "GET /%00 HTTP/1.1",
        "TRACE / HTTP/1.1",
        "GET /api/%2e%2e/%2e%2e/etc/passwd HTTP/1.1",
        "GET /api/exams?limit=%ff HTTP/1.1",
    )  # fmt: skip
    for first in (line.encode() for line in lines):
        head = raw(instance, first + b"\r\n" + host + b"\r\n")
        status = int(head.split(b" ")[1])
        assert 200 <= status < 500, (first, head[:200])
        assert b"x-request-id:" in head.lower(), first
