"""deploy/korrigo.service is accepted by systemd, keeps the service small, and is what the guide installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "korrigo.service"
GUIDE = ROOT / "docs" / "guides" / "one-machine.md"
INSTALLED = "/opt/korrigo/.venv/bin/korrigo"
# The scale goes from 0 to 10; up to 2.5 is below half of what systemd calls "OK" (from 1 to 5).
WORST_EXPOSURE = 2.5

needs_systemd = [
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on PATH"),
    pytest.mark.allowed_skip("a machine without systemd, such as a container"),
]


def _values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def _analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)


class TestSystemd:
    """What systemd itself says of the file."""

    pytestmark = needs_systemd

    def test_verify_finds_nothing(self, tmp_path: Path) -> None:
        # verify looks whether the program exists; here it lies in the checkout.
        korrigo = Path(sys.executable).with_name("korrigo")
        text = UNIT.read_text()
        assert text.count(INSTALLED) == 1
        unit = tmp_path / UNIT.name
        unit.write_text(text.replace(INSTALLED, str(korrigo)))
        found = _analyze("verify", str(unit))
        assert (found.returncode, found.stderr, found.stdout) == (0, "", "")

    def test_verify_would_find_something(self, tmp_path: Path) -> None:
        """Without this, a verify that looks at nothing would pass the test above."""
        unit = tmp_path / UNIT.name
        unit.write_text(UNIT.read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
        found = _analyze("verify", str(unit))
        assert "ProtectSystm" in found.stderr

    def test_the_service_is_exposed_little(self) -> None:
        found = _analyze(
            "security", "--offline=yes", "--no-pager", f"--threshold={int(WORST_EXPOSURE * 10)}", str(UNIT)
        )
        assert found.returncode == 0, found.stdout + found.stderr
        overall = re.search(r"Overall exposure level for korrigo\.service: ([0-9.]+)", found.stdout)
        assert overall is not None
        assert float(overall[1]) <= WORST_EXPOSURE


def test_the_sandbox_of_documents_still_works_under_the_unit() -> None:
    """The sandbox needs a user and a network namespace and Landlock; hardening must leave these."""
    assert {"user", "net"} <= set(" ".join(_values("RestrictNamespaces")).split())
    allowed = _values("SystemCallFilter")[0].split()
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= set(allowed)
    assert _values("PrivateUsers") == [] and _values("MemoryDenyWriteExecute") == []


def test_wrong_settings_do_not_start_it_again() -> None:
    from korrigo.cli import EXIT_CONFIG

    assert _values("RestartPreventExitStatus") == [str(EXIT_CONFIG)]
    assert _values("KillMode") == ["mixed"]
    assert _values("User") == ["korrigo"]


def test_the_guide_uses_the_folders_of_the_unit() -> None:
    guide = GUIDE.read_text()
    for path in (INSTALLED.removesuffix("/.venv/bin/korrigo"), "/var/lib/korrigo", "/etc/korrigo/korrigo.env"):
        assert path in guide and path in UNIT.read_text()
    for name in ("deploy/korrigo.service", "deploy/prometheus.yml", "deploy/alertmanager.yml"):
        assert name in guide and (ROOT / name).exists()


def test_every_setting_that_the_guide_names_exists() -> None:
    known = set(re.findall(r"`(KORRIGO_[A-Z0-9_]+)`", (ROOT / "docs" / "reference" / "settings.md").read_text()))
    named = set(re.findall(r"\bKORRIGO_[A-Z]+__[A-Z_]+[A-Z]\b", GUIDE.read_text()))
    assert named
    assert {name.removesuffix("_FILE") for name in named} - known == set()


def test_the_guide_is_sound_bash() -> None:
    for block in re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, timeout=20, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), block
