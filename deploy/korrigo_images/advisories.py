"""Asks an advisory service about every distribution of every lock: the gate before images are published.

Called by `make audit-dependencies` and by a test. pip-audit reads the locks alone and installs nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from korrigo_images.context import CHECKOUT
from korrigo_images.rootfs import ImagesFailed

LOCKS = ("ingest", "grading", "render", "audit", "operator", "embedded", "build")
_SECONDS = 300
# what pip-audit says when nobody answered, as opposed to when somebody answered "vulnerable"
_UNREACHABLE = (
    "ConnectionError", "ConnectionFailed", "connect timeout", "Could not connect", "Max retries exceeded",
    "ServiceError", "Failed to establish", "Read timed out", "ReadTimeout", "ConnectTimeout", "HTTPError",
)  # fmt: skip


class NoAdvisoryService(ImagesFailed):
    """No advisory service answers from this machine: nothing is known, neither good nor bad."""


def audit(lock: Path) -> str:
    """Return pip-audit's report when a lock has no known vulnerability.

    Raises ImagesFailed with the report when there is one, NoAdvisoryService when nobody answered.
    """
    argv = [sys.executable, "-m", "pip_audit", "--strict", "--progress-spinner", "off", "--disable-pip"]
    argv += ["--require-hashes", "--timeout", "20", "--requirement", str(lock)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise NoAdvisoryService(f"no advisory service answered for {lock.name} within {_SECONDS} s") from None
    said = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode == 0:
        return said
    if any(word in said for word in _UNREACHABLE):
        raise NoAdvisoryService(f"no advisory service answers: {said[-400:]}")
    raise ImagesFailed(f"{lock.name} does not pass pip-audit --strict:\n{said[-3000:]}")


def audit_all() -> list[str]:
    """Audit every lock that goes into an image or builds one; return the reports."""
    return [f"{name}.lock: {audit(CHECKOUT / 'requirements' / f'{name}.lock')}" for name in LOCKS]
