"""Asks an advisory service about every distribution of every lock: the gate before images are published.

Called by `make audit-dependencies` and by a test. pip-audit reads the locks alone and installs nothing. A package index
may answer without knowing a single advisory (a mirror), so a distribution that is known to be bad is asked about first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from korrigo_images.context import CHECKOUT
from korrigo_images.rootfs import ImagesFailed

LOCKS = ("ingest", "grading", "render", "audit", "operator", "embedded", "build")
# CVE-2023-5752, in every advisory database
KNOWN_BAD = "pip==22.0"
_SECONDS = 300


class NoAdvisoryService(ImagesFailed):
    """No advisory service answers from this machine: nothing is known, neither good nor bad."""


def audit_all() -> list[str]:
    """Audit every lock that goes into an image or builds one; return the reports.

    Raises NoAdvisoryService when nobody answered, ImagesFailed with the report of what is vulnerable.
    """
    _find_service()
    return [f"{name}: {_audit(CHECKOUT / 'requirements' / f'{name}.lock')}" for name in LOCKS]


def _find_service() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        asked = Path(scratch) / "requirements.txt"
        asked.write_text(f"{KNOWN_BAD}\n")
        done = _pip_audit("--no-deps", "--format", "json", "--requirement", str(asked))
    try:
        known = json.loads(done.stdout)["dependencies"][0]["vulns"]
    except (ValueError, LookupError):
        known = []
    if not known:
        said = done.stderr.strip()[-300:]
        raise NoAdvisoryService(f"no advisory service knows what is wrong with {KNOWN_BAD}: {said}")


def _audit(lock: Path) -> str:
    done = _pip_audit("--strict", "--require-hashes", "--requirement", str(lock))
    said = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode != 0:
        raise ImagesFailed(f"{lock.name} does not pass pip-audit --strict:\n{said[-3000:]}")
    return said


def _pip_audit(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--disable-pip", "--timeout", "20", *words]
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise NoAdvisoryService(f"no advisory service answered within {_SECONDS} s") from None
