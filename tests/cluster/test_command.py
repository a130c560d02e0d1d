"""`make cluster` into a cluster that is there already, as strangers call it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.attached import Attached
from cluster.clustered import Clustered
from cluster.installation import Installation
from cluster.node import TESTS
from harness.client import Client
from harness.processes import clean_environment

PASSWORD = "another-correct-horse"


@pytest.mark.timeout(900)
def test_an_installation_into_a_cluster_of_somebody_elses(
    installation: Installation, instance: Clustered, admin: Client, tmp_path: Path
) -> None:
    assert installation.node is not None
    kubeconfig = str(installation.node.kubeconfig)
    python_path = os.pathsep.join([str(TESTS), str(TESTS.parent / "deploy")])
    environment = clean_environment() | {"KUBECONFIG": kubeconfig, "PYTHONPATH": python_path, "TMPDIR": str(tmp_path)}
    forward = None
    try:
        # it comes back only when nobody holds the pipes any more
        done = subprocess.run(
            [sys.executable, "-m", "cluster.command", "up"],
            env=environment | {"KORRIGO_ADMIN_PASSWORD": PASSWORD},
            cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=800, check=False,
        )  # fmt: skip
        forward = next(iter(tmp_path.glob("korrigo-attached-*/forward.json")), None)
        assert done.returncode == 0, done.stderr
        ready, where = done.stdout.splitlines()[-2:]
        assert where == f"KUBECONFIG={kubeconfig}"
        found = re.fullmatch(r"Korrigo is ready at (http://127\.0\.0\.1:\d+)", ready)
        assert found, ready
        with Client(found[1], patience_seconds=30) as client:
            assert client.login("admin", PASSWORD).user["username"] == "admin"
    finally:
        instance.admin_password = installation.admin_password
        # another password ends the sessions of the one before
        admin.login("admin", instance.admin_password)
        if forward is not None:
            Attached(kubeconfig, installation.kube.binaries, forward.parent).close()
