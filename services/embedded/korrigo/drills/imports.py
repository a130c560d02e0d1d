"""Causes of an import that does not get on (playbook, scenario 1)."""

from __future__ import annotations

import time

from korrigo.drills import documents
from korrigo.drills.drill import IMPORT, Drill


class CorruptedPdf(Drill):
    """A copier whose disk is full delivers one broken file after the other."""

    cause = "corrupted-pdf"
    scenario = "import-stuck"
    what = "a copier delivers one broken PDF after the other"
    expects = ("OCRErrorsHigh",)
    needs = frozenset({IMPORT})
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


DRILLS = (CorruptedPdf,)
