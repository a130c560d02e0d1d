"""/metrics of a running product: complete, summed over its processes, true whatever is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from harness.client import Client
from harness.instance import KORRIGO, Embedded
from harness.pdfs import Label, a4_scan
from harness.processes import Child, free_port, kill_hard, wait_for
from harness.scrapes import CONTRACT, Scrape

IMPORTED = {"status": "success", "pages_bucket": "1-10"}
_made = [700]


@pytest.fixture(scope="module")
def own_env() -> Mapping[str, str]:
    """Gauges and patience of a second or two."""
    return {"KORRIGO_HTTP__METRICS_CACHE_SECONDS": "0.5", "KORRIGO_JOBS__STUCK_SECONDS": "2"}


def scrape(own: Embedded) -> Scrape:
    """Read /metrics, patiently: the api may just be starting."""

    def answer() -> str:
        found = own.get("/metrics", timeout=20)
        return found.text if found.status_code == 200 else ""

    return Scrape(wait_for("/metrics", answer, seconds=30))


def upload(boss: Client, folder: Path) -> str:
    """Send a scan of one page; returns its id."""
    _made[0] += 1
    exam = boss.create_exam(f"Metrics {_made[0]}")
    path = a4_scan(folder / f"{_made[0]}.pdf", [Label(_made[0], 1, 1)])
    return str(boss.upload(exam["id"], path)["scan_id"])


def imported(page: Scrape) -> float:
    """How many imports succeeded, as the workers' children counted."""
    return page.get("grading_import_duration_seconds_count", **IMPORTED)


def test_the_page_holds_the_contract_and_nothing_else(own: Embedded) -> None:
    page = scrape(own)
    automatic = {name for name in page.types if name.startswith(("process_", "python_"))}
    assert automatic and page.types.keys() - automatic == CONTRACT.keys()
    assert {name: page.types[name] for name in CONTRACT} == {name: kind for name, (kind, _, _) in CONTRACT.items()}
    for name, (kind, labels, buckets) in CONTRACT.items():
        for found in page.numbers:
            if found[0] in (name, f"{name}_bucket"):
                assert {label for label, _ in found[1]} - {"le"} == set(labels), found
        if kind == "histogram":
            bounds = {float(dict(labels)["le"]) for labels in page.of(f"{name}_bucket")}
            assert bounds == {*buckets, float("inf")}, name
    assert page.get("grading_db_up") == page.get("grading_broker_up") == page.get("grading_audit_chain_valid") == 1
    assert page.get("grading_workers_ready", queue="jobs.ingest") == 1
    # Every route is there before its first request, its failures too.
    assert page.get("http_requests_total", method="POST", path="/api/copies/{copy_id}/lock", status="500") == 0


def test_counters_outlive_the_processes_that_counted(own: Embedded, boss: Client, tmp_path: Path) -> None:
    """Workers, pool children and the api die by SIGKILL: nothing falls, and nothing grows by itself."""
    boss.wait_scan(upload(boss, tmp_path))
    wait_for("the import to be counted", lambda: imported(scrape(own)) == 1, seconds=20)
    before = scrape(own)
    files = len(list((own.home / "run" / "samples").glob("*.db")))
    kill_hard(own.pool_children()[0])
    for name in ("worker", "api", "sweeper"):
        old = own.children()[name]
        assert kill_hard(old)
        wait_for(f"a new {name}", lambda: own.children().get(name, old) != old, seconds=30)  # noqa: B023
        own.wait_ready(60)
        after = scrape(own)
        fallen = {series for series, number in before.counts().items() if after.counts().get(series, -1) < number}
        assert not fallen
        grown = {s for s, number in after.counts().items() if number > before.counts().get(s, 0) + 1e-9}
        assert {name for name, _ in grown} <= {"http_requests_total", "http_request_duration_seconds_count"}
        before = after
    boss.wait_scan(upload(boss, tmp_path))
    wait_for("the second import", lambda: imported(scrape(own)) == 2, seconds=20)
    assert len(list((own.home / "run" / "samples").glob("*.db"))) <= files + 4


def test_stuck_work_is_told_by_metric_and_command_and_heals(own: Embedded, boss: Client, tmp_path: Path) -> None:
    with own.resting():
        scan_id = upload(boss, tmp_path)

        def told() -> bool:
            return scrape(own).total("grading_stuck_copies") == 1

        wait_for("a stuck import", told, seconds=30, every_seconds=0.5)
        page = scrape(own)
        assert page.get("grading_jobs", kind="import", state="READY") == 1
        assert page.get("broker_queue_oldest_seconds", queue="jobs.ingest") > 2
        listed = own.cli("stuck", "--json")
        assert listed.returncode == 9
        (item,) = json.loads(listed.stdout)["items"]
        assert (item["stage"], item["subject_id"], item["copies"]) == ("import", scan_id, 1)
        assert item["reason"] in ("lost_task", "worker_dead")
        assert scan_id in own.cli("stuck").stdout
    boss.wait_scan(scan_id)
    wait_for("nothing stuck", lambda: scrape(own).total("grading_stuck_copies") == 0, seconds=30)
    page = scrape(own)
    assert page.get("grading_jobs", kind="import", state="READY") == 0
    assert page.get("broker_queue_oldest_seconds", queue="jobs.ingest") == 0
    none = own.cli("stuck")
    assert (none.returncode, none.stdout) == (0, "nothing is stuck\n")


def test_a_worker_of_its_own_serves_what_its_pool_counted(own: Embedded, boss: Client, tmp_path: Path) -> None:
    """As in production: no shared home, a port of its own."""
    port = free_port()
    given = psutil.Process(own.children()["worker"]).environ()
    env = {name: value for name, value in given.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    env |= {"KORRIGO_DATABASE__URL": Path(env.pop("KORRIGO_DATABASE__URL_FILE")).read_text().strip()}
    env |= {"KORRIGO_HTTP__METRICS_PORT": str(port), "TMPDIR": str(tmp_path)}
    ready = tmp_path / "ready"
    argv = [str(KORRIGO), "work", "ingest", "--ready-file", str(ready)]
    child = Child("work ingest", argv, tmp_path / "work.log", env, cwd=tmp_path)
    child.start()
    try:
        wait_for("the worker", ready.exists, seconds=60)
        with own.resting():
            boss.wait_scan(upload(boss, tmp_path))

        def counted() -> bool:
            page = Scrape(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
            return imported(page) == 1 and "korrigo_build_info" in page.types

        wait_for("the pool's import", counted, seconds=20)
        assert len(list(tmp_path.glob("korrigo-samples-*"))) == 1
        child.stop(signal.SIGTERM, seconds=30)
        assert not list(tmp_path.glob("korrigo-samples-*"))
    finally:
        child.kill()


def test_a_new_start_counts_anew(own: Embedded) -> None:
    """The last test of this instance: all counters begin together, so Prometheus sees one reset."""
    assert imported(scrape(own)) >= 1
    assert own.stop_cleanly() == 0
    own.start()
    page = scrape(own)
    assert imported(page) == 0
    assert os.listdir(own.home / "run" / "samples")
