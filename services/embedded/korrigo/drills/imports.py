"""Causes of an import that does not get on (playbook, scenario 1). What the whole machine lacks is in `outages`."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from korrigo import processes
from korrigo.drills import documents
from korrigo.drills.drill import FINALIZE, IMPORT, Drill


class CorruptedPdf(Drill):
    """A copier whose disk is full delivers one broken file after the other."""

    cause = "corrupted-pdf"
    scenario = "import-stuck"
    what = "a copier delivers one broken PDF after the other"
    expects = ("OCRErrorsHigh",)
    needs = frozenset({IMPORT})
    pages = ("ocr-errors",)
    pressure = 1

    def inject(self) -> None:
        self._good = ""
        self.press(0)

    def press(self, number: int) -> None:
        exam_id = self.stage.exam_id
        self.stage.admin.uploaded(exam_id, documents.broken(self.stage.number()))
        # 5 errors "per minute" are 5 in 3 seconds (drills.rules); more than twice as many here.
        time.sleep(0.2)

    def remedy(self) -> None:
        # A refused file never becomes better: the sheets are scanned again.
        self._good = self.stage.admin.uploaded(self.stage.exam_id, self.stage.scan())

    def is_healed(self) -> bool:
        return bool(self.stage.admin.scan(self._good)["state"] == "DONE")


class _StuckImport(Drill):
    """An honest scan whose import fails until something else is put right."""

    scenario = "import-stuck"
    expects = ("ImportStuck",)
    # The page ends the worker, which finalising needs too.
    needs = frozenset({IMPORT, FINALIZE})
    pages = ("import-stuck",)
    scan_id = ""

    def upload(self) -> None:
        """Upload the scan that will not get on."""
        self.scan_id = self.stage.admin.uploaded(self.stage.exam_id, self.stage.scan())

    def environment(self) -> dict[str, str]:
        return {"SCAN": self.scan_id}

    def is_healed(self) -> bool:
        return bool(self.stage.admin.scan(self.scan_id)["state"] == "DONE")


class ImportTimeout(_StuckImport):
    """The machine is so busy that whatever opens a document gets no processor time."""

    cause = "import-timeout"
    what = "documents get no processor time, and each attempt runs out of time"

    def inject(self) -> None:
        self._stop = threading.Event()
        self._starver = threading.Thread(target=self._starve, daemon=True)
        self._starver.start()
        # Large once unpacked, so that no step is over before it is noticed.
        data = documents.scan(1, f"slow {self.stage.number()}", padding_megabytes=24)
        self.scan_id = self.stage.admin.uploaded(self.stage.exam_id, data)

    def _starve(self) -> None:
        while not self._stop.wait(0.004):
            for zygote in self._zygotes():
                processes.send(_children(zygote), signal.SIGSTOP)

    def _zygotes(self) -> list[int]:
        now = time.monotonic()
        if now - getattr(self, "_looked_at", -1e9) > 0.25:
            self._looked_at = now
            self._found = [pid for pid in self.stage.scratch.family("worker") if _is_zygote(pid)]
        return self._found

    def mend(self) -> None:
        self._stop.set()
        self._starver.join(10)

    def undo(self) -> None:
        if hasattr(self, "_stop"):
            self.mend()


def _is_zygote(pid: int) -> bool:
    with suppress(OSError):
        return b"korrigo_kit.sandbox" in (processes.PROC / str(pid) / "cmdline").read_bytes() and bool(
            not _is_zygote_child(pid)
        )
    return False


def _is_zygote_child(pid: int) -> bool:
    found = processes.stat(pid)
    if found is None:
        return True
    with suppress(OSError):
        return b"korrigo_kit.sandbox" in (processes.PROC / str(found.parent) / "cmdline").read_bytes()
    return True


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class ImportRolledBack(_StuckImport):
    """A table refuses what the import writes: its transaction is rolled back, whole, every time."""

    cause = "import-rolled-back"
    what = "the database refuses the import's rows, and its transaction is rolled back"

    def inject(self) -> None:
        self.stage.scratch.sql(
            "CREATE FUNCTION ingest.drill_refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'drill: no page may be written'; END $$;"
            " CREATE TRIGGER drill_refuse BEFORE INSERT ON ingest.pages"
            " FOR EACH ROW EXECUTE FUNCTION ingest.drill_refuse()"
        )
        self.upload()

    def mend(self) -> None:
        self.stage.scratch.sql(
            "DROP TRIGGER IF EXISTS drill_refuse ON ingest.pages; DROP FUNCTION IF EXISTS ingest.drill_refuse()"
        )

    def undo(self) -> None:
        self.mend()


DRILLS = (CorruptedPdf, ImportTimeout, ImportRolledBack)
