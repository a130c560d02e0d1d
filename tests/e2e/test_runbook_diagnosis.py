"""The Diagnosis part of every runbook, run as it is written against a running instance, in both modes.

One bash per page, with the preamble of docs/runbooks/README.md; the instance has one copy in STAGING and knows its
scan, so that the lines about one copy and one scan run too. `korrigo` is the one of `harness.command_line`: two dozen
starts of a Python would be most of this test's time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harness.client import Client
from harness.command_line import CommandLine
from harness.instance import KORRIGO, Embedded, Instance
from harness.pdfs import Label, a4_scan
from harness.runbooks import COMPLAINTS, PAGES, diagnosis, preamble, terminal_environment


@pytest.fixture(scope="module")
def korrigo(instance: Instance) -> Iterator[CommandLine]:
    with CommandLine(instance.env, instance.home) as command_line:
        yield command_line


@pytest.fixture(scope="module")
def terminal(
    instance: Instance, admin: Client, korrigo: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, str]:
    """Say what a person's terminal holds once the preamble asks: where, who, which copy, which scan."""
    exam = admin.create_exam("Runbooks", pages_per_booklet=0, auto_validate=False)
    path = a4_scan(tmp_path_factory.mktemp("scan") / "scan.pdf", [Label(7, 1, page) for page in (1, 2)])
    scan_id = admin.upload(exam["id"], path)["scan_id"]
    copy_id = admin.wait_scan(scan_id)["copy_ids"][0]
    admin.wait_audit(copy_id, "IMPORT")
    token = admin.http.headers["Authorization"].removeprefix("Bearer ")
    given = {"BASE": instance.url, "TOKEN": token, "COPY": copy_id, "SCAN": scan_id}
    return terminal_environment(instance.env, korrigo.folder) | given


def _run(script: str, env: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_preamble_logs_in_by_itself(instance: Instance, terminal: Mapping[str, str], tmp_path: Path) -> None:
    """With the real program, and on one machine with nothing given but the folder of the data."""
    env = {name: value for name, value in terminal.items() if name not in {"TOKEN", "COPY", "SCAN"}}
    script = 'api "$BASE/api/me" | pretty\nqueue\nbeats\nkorrigo version'
    if isinstance(instance, Embedded):
        script += "\nchild worker"
    (instance.home / "admin-password").write_text(instance.admin_password + "\n")
    done = _run(preamble() + "\n" + script, env | {"PATH": f"{KORRIGO.parent}:{os.environ['PATH']}"}, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"username": "admin"' in done.stdout and "worker" in done.stdout


def test_the_sql_of_the_preamble_cannot_change_anything(terminal: Mapping[str, str], tmp_path: Path) -> None:
    done = _run(preamble() + '\nsql "DELETE FROM grading_copylock"', terminal, tmp_path)
    assert done.returncode != 0
    assert "read-only transaction" in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on PATH")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_diagnosis_runs(page: Path, terminal: Mapping[str, str], tmp_path: Path) -> None:
    commands, last = diagnosis(page)
    done = _run(f"{preamble()}\n{commands}", terminal, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert [word for word in COMPLAINTS if word in done.stderr] == [], done.stderr
    assert last in done.stdout
