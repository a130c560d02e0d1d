"""`korrigo demo`: the story by itself, on a running instance and on a fresh one."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from harness.instance import KORRIGO, Embedded
from harness.processes import clean_environment

PDF_PATH = re.compile(r"(/[^\s\"']+\.pdf)")


def test_demo_on_a_running_instance_passes_and_names_the_pdf(fresh: Embedded) -> None:
    fresh.start()
    done = fresh.cli("demo", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = PDF_PATH.search(done.stdout)
    assert found and Path(found.group(1)).read_bytes().startswith(b"%PDF-"), done.stdout
    assert fresh.up.is_running()
    again = fresh.cli("demo", "--json", seconds=240)
    assert again.returncode == 0, again.stdout + again.stderr
    assert isinstance(json.loads(again.stdout.strip().splitlines()[-1]) if again.stdout else None, dict)


def test_demo_drives_a_product_by_its_address(fresh: Embedded, tmp_path: Path) -> None:
    """As `helm test` does: no home of that product, an address, and routes where there is no gateway."""
    fresh.start()
    elsewhere = {"KORRIGO_HOME": str(tmp_path / "home"), "KORRIGO_ADMIN_PASSWORD": fresh.admin_password}

    def demo(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(KORRIGO), "demo", "--url", fresh.url, *words]
        env = clean_environment() | elsewhere
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240, check=False)

    done = demo("--route", f"/api/scans={fresh.url}", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (first, *_) = json.loads(done.stdout.strip().splitlines()[-1])["copies"]
    assert Path(first["final_pdf"]).is_relative_to(tmp_path)
    refused = demo("--route", "api/scans")
    assert refused.returncode != 0 and "INVALID_ROUTE" in refused.stdout + refused.stderr


def test_demo_on_a_fresh_home_starts_and_stops_its_own(fresh: Embedded) -> None:
    done = fresh.cli("demo", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = PDF_PATH.search(done.stdout)
    assert found and Path(found.group(1)).read_bytes().startswith(b"%PDF-"), done.stdout


def test_demo_without_a_product_fails(fresh: Embedded) -> None:
    fresh.extra_env["KORRIGO_NO__SUCH"] = "1"
    assert fresh.cli("demo", seconds=120).returncode != 0


def test_bench_tells_its_figures_beside_bare_ones_and_leaves_nothing(fresh: Embedded) -> None:
    before = sorted(fresh.home.iterdir())
    done = fresh.cli("bench", "--copies", "2", "--pages", "2", "--markers", "1", "--json", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert (figures["pages"], figures["finals"], figures["requests"]) == (4, 2, 2 * 9)
    assert figures["import_ratio"] == pytest.approx(
        figures["import_pages_per_second"] / figures["engine_alone_pages_per_second"], rel=0.02
    )
    assert all(value > 0 for value in figures.values())
    assert list(fresh.temporary.glob("korrigo-bench-*")) == [], "the scratch home is gone"
    assert sorted(fresh.home.iterdir()) == before, "no other was touched"
