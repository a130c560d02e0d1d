"""A part of the machine or of the product is away as a whole: what people notice meanwhile, and what comes back.

The matrix of reliability.md 13: broker, object store, render, audit and database, each with what must go on without it;
and the worker, the sweeper and the disk, whose loss needs a person.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from korrigo import processes
from korrigo.drills.desk import Desk
from korrigo.drills.drill import FINALIZE, IMPORT, LOCKS, SWEEPER, Drill
from korrigo.drills.patience import wait_for

_BUDGET = ("ErrorRateHigh", "ErrorBudgetBurnFast", "ErrorBudgetBurnSlow")


class _Work:
    """What markers and the secretariat go on doing, with a note of every step that was refused."""

    def __init__(self, drill: Drill, copies: int) -> None:
        stage = drill.stage
        self._stage = stage
        self._desk: Desk = stage.admin
        self._copies = [stage.copy() for _ in range(copies)]
        self._image = self._desk.ok("GET", f"/api/copies/{self._copies[0]}")["pages"][0]["image_url"]
        self.refused: list[str] = []
        self.done = 0
        self.scans: list[str] = []
        self.finalised: list[str] = []

    def step(self, what: str, method: str, path: str, **given: object) -> None:
        """Do one thing; anything but success is noted."""
        answer = self._desk.send(method, path, **given)
        self.done += 1
        if not answer.is_success:
            self.refused.append(f"{what} was answered {answer.status_code} {answer.text[:120]}")

    def mark(self) -> None:
        """Open a copy, lock it, remark, give points, give it back; look at its picture."""
        copy_id = self._copies[0]
        self.step("the list of exams", "GET", "/api/exams")
        self.step("the picture of a page", "GET", self._image)
        token = self._desk.lock(copy_id)
        headers = {"X-Lock-Token": token}
        body = {"page_index": 0, "x": 0.1, "y": 0.3, "w": 0.4, "h": 0.05, "type": "COMMENT", "content": "Seen."}
        self.step("a remark", "POST", f"/api/copies/{copy_id}/annotations", json=body, headers=headers)
        points = {"scores": {"ex1": 10}}
        self.step(
            "points", "PUT", f"/api/copies/{copy_id}/scores", json=points, headers=headers | {"If-Match": "*"}
        )
        self.step("giving a copy back", "DELETE", f"/api/copies/{copy_id}/lock", headers=headers)

    def upload(self) -> None:
        """Upload a scan."""
        answer = self._desk.upload(self._stage.exam_id, self._stage.scan())
        self.done += 1
        if answer.status_code == 202:
            self.scans.append(answer.json()["scan_id"])
        else:
            self.refused.append(f"an upload was answered {answer.status_code} {answer.text[:120]}")

    def finalise(self) -> None:
        """Mark a further copy and ask for its final PDF."""
        if len(self._copies) > 1:
            copy_id = self._copies.pop()
            answer = self._desk.finalize(copy_id, self._desk.marked(copy_id))
            self.done += 1
            if answer.status_code == 202:
                self.finalised.append(copy_id)
            else:
                self._copies.insert(1, copy_id)
                self.refused.append(f"finalising was answered {answer.status_code} {answer.text[:120]}")

    def is_all_done(self) -> bool:
        """Tell whether everything that was accepted is done."""
        return all(self._desk.scan(scan_id)["state"] == "DONE" for scan_id in self.scans) and all(
            self._desk.status(copy_id) == "GRADED" for copy_id in self.finalised
        )


class WorkerDown(Drill):
    """The worker hangs, so that nobody starts another, and work waits."""

    cause = "worker-down"
    scenario = "import-stuck"
    what = "the worker hangs with everything that it started"
    expects = ("WorkersDown",)
    # Copies are stuck and events do not reach the trail as long as nobody works.
    also = ("ImportStuck", "FinalizationStuck", "AuditEventsMissing", "QueueBacklog")
    pages = ("workers-down",)

    def inject(self) -> None:
        processes.send(self.stage.scratch.family("worker"), signal.SIGSTOP)
        self._scans = [self.stage.admin.uploaded(self.stage.exam_id, self.stage.scan()) for _ in range(3)]

    def is_healed(self) -> bool:
        return all(self.stage.admin.scan(scan_id)["state"] == "DONE" for scan_id in self._scans)

    def undo(self) -> None:
        processes.send(self.stage.scratch.family("worker"), signal.SIGCONT)


class SweeperDown(Drill):
    """The sweeper hangs: nothing heals by itself, and an expired lock stays."""

    cause = "sweeper-stale"
    scenario = "monitoring"
    what = "the sweeper hangs, and a lock that has ended stays"
    expects = ("SweeperStale", "ExpiredLocksNotReleased")
    # Nothing heals meanwhile, and doctor says so first, whatever it is asked about.
    needs = frozenset({SWEEPER, LOCKS, IMPORT, FINALIZE})
    pages = ("sweeper-stale", "expired-locks")

    def prepare(self) -> None:
        self.copy_id = self.stage.copy()

    def inject(self) -> None:
        processes.send(self.stage.scratch.family("sweeper"), signal.SIGSTOP)
        self.stage.admin.lock(self.copy_id, ttl_seconds=1)

    def environment(self) -> dict[str, str]:
        return {"COPY": self.copy_id}

    def is_healed(self) -> bool:
        return self.stage.admin.status(self.copy_id) == "READY"

    def undo(self) -> None:
        processes.send(self.stage.scratch.family("sweeper"), signal.SIGCONT)


class DiskFull(Drill):
    """Uploads that nobody continues have filled the disk for uploads."""

    cause = "disk-full"
    scenario = "storage"
    what = "forgotten uploads fill the volume"
    expects = ("DiskSpaceCritical",)
    also = ("DiskSpaceLow", *_BUDGET)
    pages = ("disk-space",)
    pressure = 1
    needs_volume = True

    def inject(self) -> None:
        self._files = []
        self._accepted = ""
        self._answers: list[int] = []
        self._spool = self.stage.scratch.spool
        free = os.statvfs(self._spool)
        # 3 % are left.
        size = free.f_bavail * free.f_frsize - free.f_blocks * free.f_frsize * 3 // 100
        days_ago = time.time() - 2 * 86_400
        for number in range(4):
            path = self._spool / f"upload-forgotten-{number}.pdf"
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size // 4)
            os.utime(path, (days_ago, days_ago))
            self._files.append(path)

    def press(self, number: int) -> None:
        self._answers.append(self.stage.admin.upload(self.stage.exam_id, self.stage.scan()).status_code)
        time.sleep(2)

    def remedy(self) -> None:
        self._accepted = self.stage.admin.uploaded(self.stage.exam_id, self.stage.scan())

    def is_healed(self) -> bool:
        return bool(self.stage.admin.scan(self._accepted)["state"] == "DONE")

    def complaints(self) -> list[str]:
        wrong = [status for status in self._answers if status != 507]
        return [f"uploads were answered {wrong} and not 507 on a full disk"] if wrong or not self._answers else []

    def undo(self) -> None:
        for path in self._files:
            path.unlink(missing_ok=True)


class BrokerDown(Drill):
    """The broker of an embedded instance lets nobody in; people go on, and all that they asked for is done after."""

    cause = "broker-down"
    scenario = "broker"
    what = "the broker lets nobody in; people mark, upload and finalise on"
    expects = ("BrokerDown",)
    # After a minute copies are stuck. Alertmanager holds that back while BrokerDown fires; it may be told once the
    # broker is back, for as long as what waited is being done.
    also = ("ImportStuck", "FinalizationStuck", "QueueBacklog")
    pages = ("broker-down",)
    pressure = 1
    hold_seconds = 30.0
    heal_seconds = 120.0

    def prepare(self) -> None:
        self._work = _Work(self, 4)

    def inject(self) -> None:
        self.stage.scratch.lock_out("korrigo_broker")

    def press(self, number: int) -> None:
        self._work.mark()
        self._work.upload()
        self._work.finalise()
        time.sleep(1.0)

    def mend(self) -> None:
        self.stage.scratch.let_in("korrigo_broker")

    def is_healed(self) -> bool:
        return self._work.is_all_done()

    def complaints(self) -> list[str]:
        return _no_refusals(self._work)

    def undo(self) -> None:
        self.mend()


def _no_refusals(work: _Work) -> list[str]:
    if not work.scans and not work.finalised:
        return [f"nothing was accepted meanwhile; {work.refused[:1]}"]
    return [f"{len(work.refused)} of {work.done} actions failed, such as: {work.refused[0]}"] if work.refused else []


class ObjectStoreDown(Drill):
    """The file system of the stored files has become read-only, as after an error of its disk."""

    cause = "object-store-down"
    scenario = "storage"
    what = "the stored files cannot be written; people mark on"
    expects = ("ObjectStoreErrorsHigh",)
    also = _BUDGET
    pages = ("object-store",)
    pressure = 1
    needs_volume = True

    def prepare(self) -> None:
        self._work = _Work(self, 2)
        self._answers: list[int] = []
        self._is_away = False

    def inject(self) -> None:
        self.stage.scratch.remount(self.stage.scratch.home.blobs, "ro")
        self._is_away = True

    def press(self, number: int) -> None:
        self._work.mark()
        self._answers.append(self.stage.admin.upload(self.stage.exam_id, self.stage.scan()).status_code)
        time.sleep(0.5)

    def mend(self) -> None:
        if self._is_away:
            self.stage.scratch.remount(self.stage.scratch.home.blobs, "rw")
            self._is_away = False

    def remedy(self) -> None:
        self._work.upload()
        self._work.finalise()

    def is_healed(self) -> bool:
        return self._work.is_all_done()

    def complaints(self) -> list[str]:
        wrong = sorted({status for status in self._answers if status != 503})
        return [*_no_refusals(self._work), *([f"uploads were answered {wrong} and not 503"] if wrong else [])]

    def undo(self) -> None:
        self.mend()


class _RoomDown(Drill):
    """One room is locked out of the database: none of its parts does anything, and the others go on."""

    scenario = "web"
    cause = "room-down"
    expects = ("SweeperStale",)
    pressure = 1
    room: str
    heal_seconds = 90.0

    def prepare(self) -> None:
        self._work = _Work(self, 4)

    def inject(self) -> None:
        self.stage.scratch.lock_out(f"korrigo_{self.room}")

    def press(self, number: int) -> None:
        self._work.mark()
        self._work.upload()
        self._work.finalise()
        time.sleep(1.0)

    def mend(self) -> None:
        self.stage.scratch.let_in(f"korrigo_{self.room}")

    def is_healed(self) -> bool:
        return self._work.is_all_done() and self.stage.scratch.korrigo("audit", "verify").returncode == 0

    def complaints(self) -> list[str]:
        return _no_refusals(self._work)

    def undo(self) -> None:
        self.mend()


class RenderDown(_RoomDown):
    """Render is away: copies wait in GRADING_IN_PROGRESS, everything else goes on."""

    name = "render-down"
    room = "render"
    what = "render is away; people mark, upload and finalise on"
    also = ("FinalizationStuck", "WorkersDown")


class AuditDown(_RoomDown):
    """Audit is away: its events wait in the rooms that wrote them."""

    name = "audit-down"
    room = "audit"
    what = "audit is away; people mark, upload and finalise on"
    also = ("AuditEventsMissing", "WorkersDown")


class DatabaseDown(Drill):
    """The database is gone with its volume: 503 at once, and back within seconds."""

    cause = "database-down"
    scenario = "database"
    what = "the database is gone with its volume"
    expects = ("DatabaseDown",)
    # Embedded, the broker is in the database.
    # The sweeper comes round every 10 s, which are more than 3 minutes here: after the outage it is late for a moment.
    also = ("BrokerDown", "SweeperStale", "WorkersDown", *_BUDGET)
    needs_silence = True
    pressure = 2
    hold_seconds = 10.0
    _SLOWEST_SECONDS = 1.0
    _BACK_SECONDS = 5.0

    def prepare(self) -> None:
        self._data = self.stage.scratch.home.postgres / "data"
        self._away = self._data.with_name("data.away")
        self._answers: list[tuple[float, int, float]] = []
        self._went_at = self._came_at = self._served_at = 0.0

    def inject(self) -> None:
        family = self.stage.scratch.family("postgres")
        working = processes.working_in(self._data)
        self._data.rename(self._away)
        processes.send({*family, *working}, signal.SIGKILL)
        self._went_at = time.monotonic()

    def press(self, number: int) -> None:
        began = time.monotonic()
        answer = self.stage.admin.send("GET", "/api/exams" if number else "/api/me")
        self._answers.append((began, answer.status_code, time.monotonic() - began))
        time.sleep(0.2)

    def mend(self) -> None:
        if self._away.exists():
            self._away.rename(self._data)

    def remedy(self) -> None:
        wait_for("the database", self._is_database_back, 60, 0.05)
        self._came_at = time.monotonic()
        wait_for("the product", lambda: self.stage.admin.send("GET", "/api/exams").status_code == 200, 60, 0.05)
        self._served_at = time.monotonic()

    def _is_database_back(self) -> bool:
        with suppress(Exception):
            return bool(self.stage.scratch.sql("SELECT 1"))
        return False

    def is_healed(self) -> bool:
        return self.stage.admin.send("GET", "/api/health/ready").status_code == 200

    def complaints(self) -> list[str]:
        # What was on its way in the moment of the loss may end in any way.
        during = [found for found in self._answers if found[0] > self._went_at + 0.5]
        wrong = sorted({status for _, status, _ in during if status != 503})
        slow = max((seconds for _, _, seconds in during), default=0.0)
        back = self._served_at - self._came_at
        found = [] if during else ["nobody asked for anything meanwhile"]
        found += [f"answers were {wrong} and not 503"] if wrong else []
        found += [f"an answer took {slow:.1f} s"] if slow >= self._SLOWEST_SECONDS else []
        found += [f"the product answered {back:.1f} s after the database"] if back >= self._BACK_SECONDS else []
        return found

    def undo(self) -> None:
        self.mend()


DRILLS = (WorkerDown, SweeperDown, DiskFull, BrokerDown, ObjectStoreDown, RenderDown, AuditDown, DatabaseDown)
