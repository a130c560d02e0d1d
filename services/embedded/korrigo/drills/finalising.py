"""Causes of a final PDF that is not made (playbook, scenario 2)."""

from __future__ import annotations

import hashlib
import os

from korrigo.drills.drill import FINALIZE, Drill


class _FailingCopy(Drill):
    """A copy that is marked as always, and whose final PDF cannot be made."""

    scenario = "finalization-failing"
    expects = ("FinalizationRetriesExhausted",)
    needs = frozenset({FINALIZE})

    def prepare(self) -> None:
        self.copy_id = self.stage.copy()
        self.token = self.stage.admin.marked(self.copy_id)

    def finalize(self) -> None:
        """Ask for the final PDF, as the marker does who sees nothing wrong."""
        self.stage.admin.finalize(self.copy_id, self.token).raise_for_status()

    def environment(self) -> dict[str, str]:
        return {"COPY": self.copy_id}

    def retry(self) -> None:
        """Ask again for everything that failed."""
        self.stage.scratch.korrigo("retry_failed_tasks", "--kind", "finalize").check_returncode()

    def is_healed(self) -> bool:
        return self.stage.admin.status(self.copy_id) == "GRADED"

    def source(self) -> str:
        """Return the name of the stored bytes that the final PDF is made of."""
        ((sha256,),) = self.stage.scratch.sql("SELECT source_sha256 FROM grading.copies WHERE id = %s", self.copy_id)
        return str(sha256)


class RenderError(_FailingCopy):
    """Somebody repaired a copy by hand and pointed it at bytes that are no PDF."""

    cause = "render-error"
    what = "a copy was pointed, behind the API, at bytes that no library can render"

    def inject(self) -> None:
        self._right = self.source()
        damaged = b"%PDF-1.7\nno object follows\n"
        sha256 = hashlib.sha256(damaged).hexdigest()
        path = self.stage.scratch.home.blobs / "cas" / sha256[:2] / sha256
        path.write_bytes(damaged)
        os.chmod(path, 0o600)
        self._point_at(sha256)
        self.finalize()

    def _point_at(self, sha256: str) -> None:
        self.stage.scratch.sql("UPDATE grading.copies SET source_sha256 = %s WHERE id = %s", sha256, self.copy_id)

    def remedy(self) -> None:
        self._point_at(self._right)
        self.retry()


DRILLS = (RenderError,)
