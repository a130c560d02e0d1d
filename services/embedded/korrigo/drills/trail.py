"""Causes of a gap in the audit trail (playbook, scenario 5)."""

from __future__ import annotations

from korrigo.drills.drill import AUDIT, Drill
from korrigo.drills.patience import wait_for
from korrigo_kit.errors import Bug


class MissingEvent(Drill):
    """The newest record of a copy is gone: a table restored by hand, a row deleted."""

    cause = "missing-event"
    scenario = "missing-audit-events"
    what = "the newest record of a copy was removed from the audit trail"
    expects = ("AuditEventsMissing",)
    needs = frozenset({AUDIT})
    detect_seconds = 120.0

    def prepare(self) -> None:
        self.copy_id = self.stage.copy()
        token = self.stage.admin.lock(self.copy_id)
        self.stage.admin.unlock(self.copy_id, token)
        wait_for("UNLOCK in the audit trail", lambda: "UNLOCK" in self._actions(), 15)

    def _actions(self) -> list[str]:
        items = self.stage.admin.ok("GET", f"/api/audit/copies/{self.copy_id}")["items"]
        return [item["action"] for item in items]

    def inject(self) -> None:
        removed = self.stage.scratch.sql(
            "ALTER TABLE audit.records DISABLE TRIGGER records_keep;"
            f" DELETE FROM audit.records WHERE subject_id = '{self.copy_id}' AND action = 'UNLOCK';"
            " ALTER TABLE audit.records ENABLE TRIGGER records_keep"
        )
        assert not removed
        if "UNLOCK" in self._actions():
            raise Bug("DRILL_NOT_INJECTED", "the record is still there")

    def remedy(self) -> None:
        done = self.stage.scratch.korrigo(
            "intervene", "RecreateAuditEvent", f"copy/{self.copy_id}", "--reason", "event missing", "--as", "admin",
            "--approved-by", self.stage.second_admin.username,
        )  # fmt: skip
        if done.returncode:
            raise Bug("DRILL_REMEDY_FAILED", (done.stderr or done.stdout)[-400:])

    def is_healed(self) -> bool:
        return "UNLOCK" in self._actions()


DRILLS = (MissingEvent,)
