"""What nobody has to heal: killed parts, leases that end. Drilled under the shipped rules, as they are."""

from __future__ import annotations

import signal
import time

from korrigo import processes
from korrigo.drills.drill import EVERYTHING, FINALIZE, IMPORT, LOCKS, Drill


class WorkerKilled(Drill):
    """The kernel ends the worker for memory while it imports and renders."""

    cause = "worker-down"
    name = "worker-killed"
    scenario = "import-stuck"
    what = "the worker is killed while it imports and renders"
    needs = frozenset({IMPORT, FINALIZE})

    def prepare(self) -> None:
        self._copies = [self.stage.copy() for _ in range(2)]
        self._tokens = [self.stage.admin.marked(copy_id) for copy_id in self._copies]

    def inject(self) -> None:
        desk = self.stage.admin
        self._scans = [desk.uploaded(self.stage.exam_id, self.stage.scan(8)) for _ in range(2)]
        for copy_id, token in zip(self._copies, self._tokens, strict=True):
            desk.finalize(copy_id, token).raise_for_status()
        while not self.stage.scratch.sql("SELECT 1 FROM ingest.jobs WHERE state = 'RUNNING'"):
            time.sleep(0.01)
        processes.send(self.stage.scratch.family("worker"), signal.SIGKILL)

    def is_healed(self) -> bool:
        desk = self.stage.admin
        return all(desk.scan(scan_id)["state"] == "DONE" for scan_id in self._scans) and all(
            desk.status(copy_id) == "GRADED" for copy_id in self._copies
        )


class ExpiredLock(Drill):
    """A marker comes back from lunch and finalises under a lease that has ended."""

    cause = "expired-lock"
    scenario = "finalization-failing"
    what = "a copy is finalised under a lease that has ended"
    needs = frozenset({LOCKS})

    def prepare(self) -> None:
        self._copy_id = self.stage.copy()
        token = self.stage.admin.marked(self._copy_id)
        self.stage.admin.unlock(self._copy_id, token)
        self._refused = 0

    def inject(self) -> None:
        token = self.stage.admin.lock(self._copy_id, ttl_seconds=1)
        time.sleep(1.2)
        self._refused = self.stage.admin.finalize(self._copy_id, token).status_code

    def is_healed(self) -> bool:
        return self.stage.admin.status(self._copy_id) == "READY"

    def complaints(self) -> list[str]:
        return [] if self._refused == 409 else [f"finalising under an ended lease was answered {self._refused}"]


class AbandonedLock(Drill):
    """A browser is gone; nobody needs the copy before its lease ends."""

    cause = "browser-crash"
    name = "abandoned-lock"
    scenario = "lock-conflicts"
    what = "a browser is gone with its lock, and nobody needs the copy before the lease ends"
    needs = frozenset({LOCKS})
    _LEASE_SECONDS = 10

    def inject(self) -> None:
        self._copy_id = self.stage.copy()
        self.stage.admin.lock(self._copy_id, ttl_seconds=self._LEASE_SECONDS)

    def is_healed(self) -> bool:
        return self.stage.admin.status(self._copy_id) == "READY"


class PartsKilled(Drill):
    """Every other part is killed, one after the other; each is back before anybody calls."""

    cause = "room-down"
    name = "parts-killed"
    scenario = "web"
    what = "api, relay, sweeper and database are killed one after the other"
    needs = EVERYTHING
    _PARTS = ("relay", "sweeper", "postgres", "api")

    def inject(self) -> None:
        for part in self._PARTS:
            old = self.stage.scratch.child(part)
            processes.send(self.stage.scratch.family(part), signal.SIGKILL)
            while self.stage.scratch.child(part) == old:
                time.sleep(0.1)
        self._scan_id = ""

    def is_healed(self) -> bool:
        try:
            if self.stage.admin.send("GET", "/api/health/ready").status_code != 200:
                return False
            self._scan_id = self._scan_id or self.stage.admin.uploaded(self.stage.exam_id, self.stage.scan())
            return bool(self.stage.admin.scan(self._scan_id)["state"] == "DONE")
        except Exception:  # not back yet
            return False


DRILLS = (WorkerKilled, ExpiredLock, AbandonedLock, PartsKilled)
