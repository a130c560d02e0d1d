"""schemathesis on the published OpenAPI: whatever is sent, no answer is a 5xx.

CI size by default; `KORRIGO_TEST_SOAK=1` sends fifty times as much. A finding prints the seed and a curl line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.client import Client
from harness.instance import Instance
from harness.instances import MakeUser
from harness.ready import ready_copy

EXAMPLES = "200" if os.environ.get("KORRIGO_TEST_SOAK") == "1" else "4"
SEED = os.environ.get("KORRIGO_FUZZ_SEED", "20260112")
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.mark.timeout(3600 if EXAMPLES == "200" else 420)
@pytest.mark.parametrize("role", ["admin", "marker"])
def test_no_input_makes_a_server_error(
    instance: Instance, admin: Client, make_user: MakeUser, tmp_path: Path, role: str
) -> None:
    # an account of its own: the fuzzer may change roles or passwords of what it finds
    user = make_user(role)
    ready_copy(admin, tmp_path)
    exclude = [
        # would end the session or lock the account out, and hide everything after
        "/api/logout", "/api/login", "/api/me/password",
    ]  # fmt: skip
    argv = [str(SCHEMATHESIS), "run", f"{instance.url}/api/openapi.json"]
    argv += ["--header", f"Authorization: {user.http.headers['Authorization']}"]
    # one thread: ast.parse of Python 3.11, which the generator calls, is not safe in several
    argv += ["--checks", "not_a_server_error", "--max-examples", EXAMPLES, "--seed", SEED, "--workers", "1"]
    argv += ["--request-timeout", "30", "--no-color", "--generation-deterministic"]
    for path in exclude:
        argv += ["--exclude-path", path]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert user.send("GET", "/api/me").status_code == 200


def test_the_openapi_is_3_1_and_describes_the_story(admin: Client) -> None:
    document = admin.json("GET", "/api/openapi.json")
    assert document["openapi"].startswith("3.1")
    told = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    for wanted in (
        "POST /api/login", "POST /api/exams", "POST /api/scans", "POST /api/copies/{copy_id}/lock",
        "POST /api/copies/{copy_id}/annotations", "PUT /api/copies/{copy_id}/scores",
        "POST /api/copies/{copy_id}/finalize", "GET /api/copies/{copy_id}/final-pdf",
        "GET /api/audit/copies/{copy_id}",
    ):  # fmt: skip
        assert wanted in told, sorted(told)
    assert admin.send("GET", "/api/docs").status_code == 200
