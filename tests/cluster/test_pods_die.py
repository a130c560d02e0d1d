"""Nothing is lost when pods are killed, deleted and evicted at random while copies go through the whole story.

The same work, ledger and checker as `tests/chaos`. CI: 20 copies, 20 faults; make soak: 200 copies, 200 faults.
`KORRIGO_CHAOS_SEED=N` replays a schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.test_kill import IS_SOAK, SEED, run
from cluster.clustered import Clustered
from cluster.installation import Installation
from harness.client import TERMINAL_SCAN, Client
from harness.faults import Chaos, schedule
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for

COPIES, FAULTS = (200, 200) if IS_SOAK else (20, 20)
VICTIMS = [f"{how} {kind}" for how in ("killed", "deleted", "evicted") for kind in ("api", "worker")]
VICTIMS.append("killed operator")
# a pod needs a while until it may be taken away again
PAUSE = (3.0, 9.0)


@pytest.mark.timeout(7200 if IS_SOAK else 1200)
def test_nothing_is_lost_when_pods_die(instance: Clustered, tmp_path: Path) -> None:
    plan = schedule(SEED, VICTIMS, faults=FAULTS, pause=PAUSE)
    run(instance, tmp_path, Chaos(instance, SEED, plan, {}), COPIES, FAULTS)


@pytest.mark.timeout(600)
def test_a_lost_worker_costs_a_minute_and_no_copy(
    installation: Installation,
    instance: Clustered,
    admin: Client,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    exam = admin.create_exam("Lost worker")
    path = a4_scan(tmp_path / "long.pdf", [Label(92, 1, page) for page in range(1, 241)])
    workers = installation.pods("ingest-worker")
    scan_id = admin.upload(exam["id"], path)["scan_id"]
    wait_for("the import under way", lambda: admin.scan(scan_id)["state"] == "RUNNING", seconds=60, every_seconds=0.02)
    lost_at = time.monotonic()
    for worker in workers:
        installation.kubectl("delete", "pod", worker["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    assert admin.scan(scan_id)["state"] not in TERMINAL_SCAN, "it was over before the worker was lost"
    scan = admin.wait_scan(scan_id, seconds=300)
    assert scan["state"] == "DONE", scan
    admin.wait_copy(scan["copy_ids"][0], ["READY"])
    record_property("told", f"from a lost worker to the copy healed: {time.monotonic() - lost_at:.0f} s")
