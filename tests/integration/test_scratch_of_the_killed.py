"""What a killed worker left in the temporary folder is removed by the next that starts, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.processes import clean_environment

HOLDS = """
import time
from korrigo_kit.scratch import scratch_folder
with scratch_folder("render") as folder:
    open(f"{folder}/final.pdf", "w").close()
    print(folder, flush=True)
    time.sleep(600)
"""


def _hold(environment: Mapping[str, str]) -> tuple[subprocess.Popen[str], Path]:
    child = subprocess.Popen([sys.executable, "-c", HOLDS], env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def test_only_the_folders_of_dead_processes_go(tmp_path: Path) -> None:
    environment = clean_environment() | {"TMPDIR": str(tmp_path)}
    killed, left = _hold(environment)
    alive, used = _hold(environment)
    own, link = tmp_path / "korrigo-render-mine", tmp_path / "korrigo-render-1-1-abcdefgh"
    own.mkdir()
    link.symlink_to(own)
    try:
        killed.kill()
        killed.wait()
        assert left.parent == used.parent == tmp_path
        clean = "from korrigo_kit.scratch import remove_leftovers; print(remove_leftovers())"
        done = subprocess.run(
            [sys.executable, "-c", clean], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str([left.name])
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([used.name, own.name, link.name])
    finally:
        for child in (killed, alive):
            child.kill()
            child.communicate()
