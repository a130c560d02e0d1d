"""The first-use walk of the README, run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from harness.instance import Instance
from harness.pdfs import Label, a4_scan

README = Path(__file__).resolve().parents[2] / "README.md"


def _walk() -> str:
    section = re.split(r"^## ", README.read_text(), flags=re.MULTILINE)
    (walk,) = (part for part in section if part.startswith("First use"))
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", walk, re.MULTILINE | re.DOTALL))


def test_the_first_use_walk_works_as_written(instance: Instance, tmp_path: Path) -> None:
    (tmp_path / "admin-password").write_text(instance.admin_password)
    environment = os.environ | {
        "BASE": instance.url,
        "KORRIGO_HOME": str(tmp_path),
        "PDF": str(a4_scan(tmp_path / "scan.pdf", [Label(71, 1, page) for page in (1, 2)])),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _walk()],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GRADED" in done.stdout.split()
    assert "16.5" in done.stdout.split()
    assert (tmp_path / "marked.pdf").read_bytes().startswith(b"%PDF-")
    for action in ("IMPORT", "VALIDATE", "LOCK", "CREATE_ANN", "FINALIZE"):
        assert f'"action": "{action}"' in done.stdout
