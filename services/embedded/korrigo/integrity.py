"""The whole installation compared with itself: rows, stored bytes, audit trail. Used by `check_data_integrity`.

Every room checks its own rows; here only what no single room can know is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from korrigo.operating import Operation, Progress
from korrigo_audit.flows import expecting, verification
from korrigo_grading.flows import checking as grading_rows
from korrigo_grading.flows import locking
from korrigo_ingest.flows import checking as ingest_rows
from korrigo_kit.blobs import BlobStore
from korrigo_kit.errors import Bug, KorrigoError
from korrigo_kit.references import blob_names

# Codes that have one remedy, and no choice in it.
_SWEPT = "LOCKED_WITHOUT_LOCK"
_ENDED = "LOCK_WITHOUT_LOCKED"
_RECOVERED = "BLOB_MISSING"
_FETCHED = ("MISSING_TAIL", "EVENT_MISSING")


@dataclass
class Finding:
    """Something that does not hold."""

    room: str
    code: str
    subject: str
    detail: str
    is_fixed: bool = False


class Check:
    """One look at everything."""

    def __init__(self, at: Operation, progress: Progress, *, is_quick: bool) -> None:
        self._at = at
        self._progress = progress
        self._is_quick = is_quick

    def run(self) -> list[Finding]:
        """Return everything that does not hold, worst room first in no order."""
        return [*self._rows(), *self._blobs(), *self._trail(), *self._acts()]

    def _rows(self) -> Iterator[Finding]:
        for code, subject, detail in ingest_rows.check(self._at["ingest"]):
            yield Finding("ingest", code, subject, detail)
        for code, subject, detail in grading_rows.check(self._at["grading"]):
            yield Finding("grading", code, subject, detail)

    def _blobs(self) -> Iterator[Finding]:
        store, seen = self._at["ingest"].blobs, set()
        for name, room in self._at.rooms.items():
            for sha256 in blob_names(room.db):
                if sha256 in seen:
                    continue
                seen.add(sha256)
                self._progress("content looked at", len(seen))
                problem = _look(store, sha256, is_quick=self._is_quick)
                if problem is not None:
                    yield Finding(name, problem, sha256, "named, but not as it was stored")

    def _trail(self) -> Iterator[Finding]:
        verdict = verification.verify(self._at["audit"])
        for found in verdict.findings:
            where = f"{found.subject_type} {found.subject_id}"
            yield Finding("audit", found.code, where, f"{found.source} {found.source_seq}")
        for room in verdict.unreachable:
            yield Finding("audit", "ROOM_SILENT", room, "its last numbers could not be asked")

    def _acts(self) -> Iterator[Finding]:
        after = ""
        while page := grading_rows.statuses_of(self._at["grading"], after):
            for copy_id, action in expecting.missing_acts(self._at["audit"].db, dict(page)):
                yield Finding("audit", "EVENT_MISSING", copy_id, action)
            after = page[-1][0]

    @staticmethod
    def fix(at: Operation, findings: list[Finding], *, is_dry_run: bool) -> None:
        """Heal what has one remedy, by the flow of its room; marks what was tried as fixed."""
        has_missed = False
        for finding in findings:
            if finding.code == _SWEPT:
                finding.is_fixed = True
            elif finding.code == _ENDED:
                finding.is_fixed = is_dry_run or locking.reconcile(at["grading"], finding.subject, at.actor_id)
            elif finding.code == _RECOVERED:
                finding.is_fixed = not is_dry_run and at["ingest"].blobs.recover(finding.subject)
            elif finding.code in _FETCHED:
                finding.is_fixed = has_missed = True
        if is_dry_run:
            return
        if any(finding.code == _SWEPT for finding in findings):
            while locking.sweep(at["grading"]):
                pass
        if has_missed:
            from korrigo.commands.recover_stuck_copies import catch_up

            catch_up(at)


def _look(store: BlobStore, sha256: str, *, is_quick: bool) -> str | None:
    if is_quick:
        return None if store.size(sha256) is not None else _RECOVERED
    try:
        next(iter(store.stream(sha256)), None)  # the whole is verified before the first byte
    except Bug:
        return "BLOB_CORRUPTED"
    except KorrigoError as error:
        if error.reason != "BLOB_NOT_FOUND":
            raise
        return _RECOVERED
    return None
