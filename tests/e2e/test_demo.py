"""`korrigo demo`: the story by itself, on a running instance and on a fresh one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from harness.instance import Embedded

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


def test_demo_on_a_fresh_home_starts_and_stops_its_own(fresh: Embedded) -> None:
    done = fresh.cli("demo", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = PDF_PATH.search(done.stdout)
    assert found and Path(found.group(1)).read_bytes().startswith(b"%PDF-"), done.stdout


def test_demo_without_a_product_fails(fresh: Embedded) -> None:
    fresh.extra_env["KORRIGO_NO__SUCH"] = "1"
    assert fresh.cli("demo", seconds=120).returncode != 0
