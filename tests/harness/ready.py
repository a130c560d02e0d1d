"""A READY copy to work on, made through the API in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.client import Client, Json
from harness.pdfs import Label, a4_scan

QUESTIONS = {"q1": 8.0, "q2": 12.0}
_made = [100]


def ready_copy(admin: Client, folder: Path, *, pages: int = 2, corrector_ids: Sequence[str] = ()) -> Json:
    """Import a small scan (never the same bytes twice) and return its copy once it is READY."""
    _made[0] += 1
    exam = admin.create_exam(f"Ready {_made[0]}", questions=QUESTIONS, corrector_ids=corrector_ids)
    path = a4_scan(folder / f"ready-{_made[0]}.pdf", [Label(_made[0], 1, p + 1) for p in range(pages)])
    scan = admin.wait_scan(admin.upload(exam["id"], path)["scan_id"])
    assert scan["state"] == "DONE", scan
    return admin.wait_copy(scan["copy_ids"][0], ["READY"], seconds=15)
