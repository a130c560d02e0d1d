"""What all drills of one run share: the instance, people with accounts, an exam, and copies that wait to be marked."""

from __future__ import annotations

import itertools
import json
import queue
import secrets
from pathlib import Path
from typing import Any

from korrigo.drills import documents
from korrigo.drills.books import Book
from korrigo.drills.desk import Desk
from korrigo.drills.scratch import Scratch
from korrigo.drills.watch import Watch
from korrigo_kit.errors import Bug

# Copies imported beforehand; a drill that needs another one makes it.
COPIES = 36
_PATIENCE_SECONDS = 30.0


class Stage:
    """See the module. Safe for several threads."""

    # Begins once somebody has an account for it.
    watch: Watch

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch
        self.admin = scratch.desk()
        self._numbers = itertools.count(1)
        # What changes the audit trail needs a second administrator's word.
        self.second_admin = self._account("admin")
        # Two people for one pile: they can be in each other's way.
        self.markers = [self._account("marker") for _ in range(2)]
        ids = [str(marker.ok("GET", "/api/me")["id"]) for marker in self.markers]
        self.exam_id = self.admin.exam("Drill", corrector_ids=ids)
        self._copies: queue.SimpleQueue[str] = queue.SimpleQueue()
        scan_id = self.admin.uploaded(self.exam_id, documents.scan(COPIES, "first pile"))
        for copy_id in self.admin.imported(scan_id, seconds=120):
            self._copies.put(copy_id)
        self.book = Book(scratch, self.admin.token)

    def _account(self, role: str) -> Desk:
        name, password = f"drill-{role}-{next(self._numbers)}", secrets.token_urlsafe(15)
        self.admin.ok("POST", "/api/users", json={"username": name, "password": password, "roles": [role]})
        return self.scratch.desk(name, password)

    def token_file(self) -> Path:
        """Write down an auditor's token for Alertmanager, as the guides say."""
        path = self.scratch.folder / "alertmanager-token"
        path.touch(mode=0o600)
        path.write_text(self._account("auditor").token)
        return path

    def number(self) -> int:
        """Return a number that nobody else gets."""
        return next(self._numbers)

    def copy(self) -> str:
        """Give a READY copy that is nobody else's."""
        return self._copies.get(timeout=_PATIENCE_SECONDS)

    def scan(self, pages: int = 1, mark: str = "") -> bytes:
        """Make an honest scan that nobody has uploaded yet."""
        return documents.scan(pages, f"{mark or 'scan'} {self.number()}")

    def doctor(self, scenario: str) -> dict[str, Any]:
        """Ask `korrigo doctor scenario`; raises Bug DRILL_NO_DOCTOR when there is no answer."""
        done = self.scratch.korrigo("doctor", "scenario", scenario, "--json")
        try:
            found = json.loads(done.stdout)
        except ValueError:
            text = (done.stderr or done.stdout)[-400:]
            raise Bug("DRILL_NO_DOCTOR", f"doctor scenario {scenario} ended with {done.returncode}: {text}") from None
        if not isinstance(found, dict):
            raise Bug("DRILL_NO_DOCTOR", f"doctor scenario {scenario} answered {done.stdout[:200]}")
        return found

    def close(self) -> None:
        """End the sessions."""
        for desk in (self.admin, self.second_admin, *self.markers):
            desk.close()
