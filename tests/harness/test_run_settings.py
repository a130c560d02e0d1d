"""What every run of the tests relies on: a hang costs one test, and in CI no skip passes unseen, side by side too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HANGS = """
import subprocess, threading, time
import psycopg

def test_sleeps():
    time.sleep(60)

def test_waits_for_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def test_waits_for_a_process():
    subprocess.run(["sleep", "60"])

def test_waits_for_the_database():
    with psycopg.connect({url!r}) as connection:
        connection.execute("SELECT pg_sleep(60)")

def test_after_them():
    pass
"""
SKIPS = {
    "test_whole.py": "import pytest\npytest.skip('nothing here', allow_module_level=True)\n",
    "test_one.py": "import pytest\ndef test_one():\n    pytest.skip('not today')\n",
    "test_allowed.py": (
        "import pytest\n@pytest.mark.allowed_skip('known')\ndef test_allowed():\n    pytest.skip('not here')\n"
        "def test_more():\n    pass\n"
    ),
}


def _pytest(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") and name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder),
         "-p", "conftest", "-o", f"cache_dir={folder / 'cache'}", "-q", *words, str(folder)],
        env=own | {"PYTHONPATH": str(ROOT / "tests")} | env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_hang_fails_one_test(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres_server").url()
    (tmp_path / "test_hangs.py").write_text(HANGS.format(url=url))
    done = _pytest(tmp_path, "--timeout=1")
    assert "4 failed, 1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("words", [(), ("-n", "2")], ids=["alone", "side by side"])
def test_no_skip_passes_unseen_in_ci(tmp_path: Path, words: tuple[str, ...]) -> None:
    for name, text in SKIPS.items():
        (tmp_path / name).write_text(text)
    done = _pytest(tmp_path, *words, CI="true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    refused = sorted(line.split()[3] for line in done.stdout.splitlines() if line.startswith("REFUSED SKIP"))
    assert refused == ["test_one.py::test_one", "test_whole.py"]
