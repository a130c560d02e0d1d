"""The runbooks in a cluster: the same pages as on one machine, from outside, after what their folder has one paste."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from chaos.test_kill import IS_SOAK
from cluster.clustered import Clustered
from cluster.installation import Installation
from harness.client import Client
from harness.pdfs import Label, a4_scan
from harness.runbooks import COMPLAINTS, PAGES, blocks, diagnosis, parts, preamble

# A page costs some ten seconds of kubectl: every fourth in CI, all in `make soak`.
FOLLOWED_PAGES = PAGES if IS_SOAK else PAGES[2::4]
FOLLOWED = f"{preamble()}\n{preamble('In a cluster')}"


@pytest.fixture(scope="module")
def terminal(instance: Clustered, admin: Client, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What a person has set: where people reach the product, and the scan and the copy of which it is."""
    exam = admin.create_exam("Runbooks", pages_per_booklet=0, auto_validate=False)
    path = a4_scan(tmp_path_factory.mktemp("scan") / "scan.pdf", [Label(7, 1, page) for page in (1, 2)])
    scan_id = admin.upload(exam["id"], path)["scan_id"]
    copy_id = admin.wait_scan(scan_id)["copy_ids"][0]
    admin.wait_audit(copy_id, "IMPORT")
    return {"BASE": instance.url, "COPY": copy_id, "SCAN": scan_id}


def _follow(
    installation: Installation, commands: str, terminal: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    done = installation.kube.shell(f"{FOLLOWED}\n{commands}", folder, seconds=300, **terminal)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return done


def test_the_words_have_their_meaning(installation: Installation, terminal: Mapping[str, str], tmp_path: Path) -> None:
    lines = ('api "$BASE/api/me"', "beats", "metric grading_copies_by_status", "logs Korrigo 1000000", 'df -h "$DATA"')
    said = _follow(installation, "\n".join(lines), terminal, tmp_path).stdout
    for part in ('"username":"admin"', "sweeper", "korrigo-grading-", 'status="STAGING"', "/var/lib/korrigo"):
        assert part in said.replace('": "', '":"'), part
    done = installation.kube.shell(f'{FOLLOWED}\nsql "DELETE FROM grading_copylock"', tmp_path, seconds=100, **terminal)
    assert done.returncode != 0
    assert "read-only transaction" in done.stderr


@pytest.mark.parametrize("page", FOLLOWED_PAGES, ids=lambda page: page.stem)
def test_every_diagnosis_runs_in_a_cluster(
    page: Path, installation: Installation, terminal: Mapping[str, str], tmp_path: Path
) -> None:
    commands, last = diagnosis(page)
    done = _follow(installation, commands, terminal, tmp_path)
    assert [word for word in COMPLAINTS if word in done.stderr] == [], done.stderr
    assert last in done.stdout


def test_new_workers_come_as_the_page_says(
    installation: Installation, terminal: Mapping[str, str], tmp_path: Path
) -> None:
    (page,) = [page for page in PAGES if page.stem == "workers-down"]
    before = {pod["metadata"]["name"] for pod in installation.pods("ingest-worker")}
    _follow(installation, "\n".join(blocks(parts(page)["Mitigation"])), terminal, tmp_path)
    after = {pod["metadata"]["name"] for pod in installation.pods("ingest-worker")}
    assert after and not before & after
