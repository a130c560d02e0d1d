"""Backup and restore in a cluster, by the very lines of the deploy guide."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster.clustered import Clustered
from cluster.installation import CHART, Installation
from harness.client import Client, Refused
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for
from harness.runbooks import GUIDES

BACKUPS = "/var/lib/korrigo/backups"


def _blocks() -> tuple[str, ...]:
    """Return the command blocks of the guide's chapter: backing up, trial, restoring, copying."""
    chapter = (GUIDES / "cluster.md").read_text().split("\n## Disaster recovery\n")[1].split("\n## ")[0]
    return tuple(re.findall(r"^```sh\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL))


def _run(installation: Installation, commands: str) -> str:
    done = installation.kube.shell(commands, CHART.parents[1])
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
    return done.stdout


def _exams(admin: Client) -> set[str]:
    return {exam["id"] for exam in admin.items("/api/exams")}


@pytest.mark.timeout(900)
def test_a_backup_is_made_copied_and_restored_as_the_guide_says(
    installation: Installation, instance: Clustered, admin: Client, tmp_path: Path
) -> None:
    make, rehearse, restore, copy_in = _blocks()
    exam = admin.create_exam("Before the backup", questions={"q1": 20.0})
    scan = admin.upload(exam["id"], a4_scan(tmp_path / "a.pdf", [Label(91, 1, 1)]))
    (copy_id,) = admin.wait_scan(scan["scan_id"])["copy_ids"]
    admin.wait_copy(copy_id, ["READY"])
    said = _run(installation, make)
    listed = json.loads(instance.cli("backup", "list", "--json").stdout)["items"]
    name = listed[-1]["name"]
    assert name in said

    # to another place and back
    (pod,) = (found["metadata"]["name"] for found in installation.pods("monitoring"))
    installation.kubectl("cp", f"{pod}:{BACKUPS}/{name}", str(tmp_path / name))
    installation.kubectl("exec", pod, "--", "rm", "-r", f"{BACKUPS}/{name}")
    _run(installation, copy_in.replace("cp 20270301T020000Z-nightly", f"cp {tmp_path / name}").replace(
        "20270301T020000Z-nightly", name))  # fmt: skip
    verified = instance.cli("backup", "verify", name, "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr

    # what nobody will see again, and a lock that nobody will hold
    late = admin.create_exam("After the backup")
    held = admin.lock(copy_id)
    _run(installation, rehearse)
    assert late["id"] in _exams(admin)
    refused = instance.cli("backup", "restore", "latest", "--yes")
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert "stop the product first" in refused.stderr + refused.stdout

    _run(installation, restore)
    assert "before-restore" in instance.cli("backup", "list").stdout
    wait_for("the end of every session", lambda: _is_refused(admin), seconds=30)
    admin.login("admin", installation.admin_password)
    assert exam["id"] in _exams(admin)
    assert late["id"] not in _exams(admin)
    assert admin.wait_copy(copy_id, ["READY"])["status"] == "READY"
    with pytest.raises(Refused, match="LOCK"):
        admin.put_scores(held, {"q1": 1.0}, "")

    # it works on, with as many pods as before, and the trail is whole
    lock = admin.lock(copy_id)
    admin.put_scores(lock, {"q1": 12.0}, "")
    admin.finalize(lock)
    admin.wait_copy(copy_id, ["GRADED"])
    assert len(installation.pods("grading")) == 2
    audit = instance.cli("audit", "verify", "--json")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def _is_refused(admin: Client) -> bool:
    try:
        admin.items("/api/exams")
    except Refused as error:
        return error.status == 401
    return False
