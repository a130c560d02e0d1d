"""Causes of a final PDF that is not made (playbook, scenario 2)."""

from __future__ import annotations

import hashlib
import os

from korrigo.drills import documents
from korrigo.drills.drill import FINALIZE, IMPORT, Drill
from korrigo_kit.errors import Bug


class _FailingCopy(Drill):
    """A copy that is marked as always, and whose final PDF cannot be made."""

    scenario = "finalization-failing"
    expects = ("FinalizationRetriesExhausted",)
    # A share of the attempts: one copy that fails three times among few others is more than a tenth.
    also = ("FinalizationFailureHigh",)
    needs = frozenset({FINALIZE})

    def prepare(self) -> None:
        self.copy_id = self.stage.copy()
        self.token = self.stage.admin.marked(self.copy_id)

    def finalize(self) -> None:
        """Ask for the final PDF, as the marker does who sees nothing wrong."""
        self.stage.admin.finalize(self.copy_id, self.token).raise_for_status()

    def environment(self) -> dict[str, str]:
        return {"COPY": self.copy_id}

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
    pages = ("retries-exhausted",)

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

    def mend(self) -> None:
        self._point_at(self._right)


class MissingPage(_FailingCopy):
    """Somebody tidied up below blobs/, and the file that holds a copy's pages lies in the trash."""

    cause = "missing-page"
    what = "the file with a copy's pages was moved to the trash"
    pages = ("object-store", "finalization-failing")

    def prepare(self) -> None:
        # A copy of its own bytes: others of the same scan share nothing with it that could hide the loss.
        exam_id = self.stage.admin.exam("Missing page", pages_per_copy=0)
        scan_id = self.stage.admin.uploaded(exam_id, self.stage.scan(2, "missing"))
        (self.copy_id,) = self.stage.admin.imported(scan_id)
        self.token = self.stage.admin.marked(self.copy_id)

    def inject(self) -> None:
        sha256 = self.source()
        blobs = self.stage.scratch.home.blobs
        (blobs / "trash").mkdir(mode=0o700, exist_ok=True)
        (blobs / "cas" / sha256[:2] / sha256).rename(blobs / "trash" / sha256)
        self.finalize()


class AnnotationOutOfPage(_FailingCopy):
    """A script wrote annotations into the table, past every check of the API."""

    cause = "annotation-out-of-page"
    what = "an annotation was written, behind the API, half outside its page"
    pages = ("finalization-failing",)

    def inject(self) -> None:
        # The table refuses it as well, so that whoever does this has to remove the check first.
        checks = self.stage.scratch.sql(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = 'grading.annotations'::regclass AND contype = 'c' AND pg_get_constraintdef(oid) LIKE"
            " '%%x + w%%'"
        )
        if len(checks) != 1:
            raise Bug("DRILL_NO_CHECK", f"grading.annotations has {len(checks)} checks of the width")
        ((self._name, self._check),) = checks
        self.stage.scratch.sql(f'ALTER TABLE grading.annotations DROP CONSTRAINT "{self._name}"')
        self.stage.scratch.sql("UPDATE grading.annotations SET x = 0.9, w = 0.4 WHERE copy_id = %s", self.copy_id)
        self._restore()
        self.finalize()

    def _restore(self) -> None:
        self.stage.scratch.sql(
            f'ALTER TABLE grading.annotations ADD CONSTRAINT "{self._name}" {self._check} NOT VALID'
        )

    def remedy(self) -> None:
        # The page has moved it onto its page and given the copy back; its marker finalises again.
        token = self.stage.admin.lock(self.copy_id)
        self.stage.admin.finalize(self.copy_id, token).raise_for_status()


class OutOfMemory(_FailingCopy):
    """A page that needs more memory than rendering may have."""

    # Memory is a cause of imports that are stuck as well: doctor would name it there.
    needs = frozenset({FINALIZE, IMPORT})
    cause = "out-of-memory"
    what = "a copy needs more memory than rendering may have"
    pages = ("retries-exhausted",)

    def prepare(self) -> None:
        exam_id = self.stage.admin.exam("Out of memory", pages_per_copy=0)
        data = documents.scan(6, f"heavy {self.stage.number()}", padding_megabytes=56)
        scan_id = self.stage.admin.uploaded(exam_id, data)
        (self.copy_id,) = self.stage.admin.imported(scan_id)
        self.token = self.stage.admin.marked(self.copy_id)

    def inject(self) -> None:
        self.finalize()

    def mend(self) -> None:
        """Put in the scan without the ballast, as a second scan at the right setting of the copier would be."""
        data = self.stage.scan(6, "light")
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.stage.scratch.home.blobs / "cas" / sha256[:2] / sha256
        path.write_bytes(data)
        os.chmod(path, 0o600)
        self.stage.scratch.sql(
            "UPDATE grading.copies SET source_sha256 = %s, source_size = %s WHERE id = %s",
            sha256, len(data), self.copy_id,
        )  # fmt: skip


DRILLS = (RenderError, MissingPage, AnnotationOutOfPage, OutOfMemory)
