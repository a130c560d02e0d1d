"""Reading scans and pages: their state for operators, and who may see which picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from korrigo_kit.auth import Principal
from korrigo_kit.db import Database, Tx
from korrigo_kit.errors import NotFound

# Who sees the identity zone; everybody else gets the masked picture (domain.md 1.10).
UNMASKED_ROLES = ("admin", "scan_operator")
_STAFF = ("admin", "scan_operator", "lead_marker", "auditor")
TERMINAL = ("DONE", "NEEDS_REVIEW", "FAILED", "REJECTED")
# A finished scan is shown as RUNNING until grading shows its copies, but no longer than this: who waits for DONE
# finds the copies, and grading being away hides no result.
SETTLE_SECONDS = 5


def scan(database: Database, scan_id: str) -> dict[str, Any]:
    """Read a scan with its copies, anomalies, conservation and attempts; raises NotFound (SCAN_NOT_FOUND)."""
    with database.transaction() as tx:
        row = tx.one(
            "SELECT s.id::text AS id, s.exam_id::text AS exam_id, s.state, s.filename, s.sha256, s.size, s.pages,"
            " s.half_pages, s.discarded, s.error_reason, s.error_message, s.created_at, s.updated_at, s.finished_at,"
            " s.finished_at > clock_timestamp() - make_interval(secs => %(settle)s) AND EXISTS (SELECT 1"
            "   FROM scan_copies c LEFT JOIN copy_access a ON a.copy_id = c.copy_id WHERE c.scan_id = s.id"
            "   AND a.copy_id IS NULL) AS is_settling,"
            " j.attempts, j.lost_leases, j.state AS job_state, j.id::text AS job_id"
            " FROM scans s JOIN jobs j ON j.id = s.job_id WHERE s.id = %(id)s",
            {"id": scan_id, "settle": SETTLE_SECONDS},
        )
        if row is None:
            raise NotFound("SCAN_NOT_FOUND", "there is no such scan")
        if row.pop("is_settling") and row["state"] in ("DONE", "NEEDS_REVIEW"):
            row["state"] = "RUNNING"
        row["copy_ids"] = [
            copy["copy_id"]
            for copy in tx.all(
                "SELECT copy_id::text AS copy_id FROM scan_copies WHERE scan_id = %s ORDER BY position", (scan_id,)
            )
        ]
        row["anomalies"] = tx.all(
            "SELECT id::text AS id, code, copy_id::text AS copy_id, scan_page, detail,"
            " resolved_at IS NOT NULL AS is_resolved FROM anomalies WHERE scan_id = %s ORDER BY created_at, id",
            (scan_id,),
        )
        row["conservation"] = _conservation(tx, row)
    return row


def _conservation(tx: Tx, scan: Mapping[str, Any]) -> dict[str, int]:
    counts = tx.row(
        "SELECT count(*) FILTER (WHERE NOT is_blank) AS placed, count(*) FILTER (WHERE is_blank) AS blank"
        " FROM pages WHERE scan_id = %s",
        (scan["id"],),
    )
    rest = scan["half_pages"] - counts["placed"] - counts["blank"] - scan["discarded"]
    return {
        "half_pages": scan["half_pages"],
        "placed": counts["placed"],
        "blank": counts["blank"],
        "discarded": scan["discarded"],
        "unassigned": rest,
    }


@dataclass(frozen=True, slots=True)
class Picture:
    """Which stored picture a caller gets of a page."""

    sha256: str
    is_masked: bool


def picture(database: Database, page_id: str, caller: Principal) -> Picture:
    """Choose the picture of a page for a caller; a page that is not his to see is NotFound (PAGE_NOT_FOUND)."""
    with database.transaction() as tx:
        row = tx.one(
            "SELECT p.picture_sha256, p.masked_picture_sha256, s.exam_id, a.assigned_corrector_id::text AS assigned,"
            " coalesce(%(caller)s = ANY(e.corrector_ids::text[]), false) AS is_corrector"
            " FROM pages p JOIN scans s ON s.id = p.scan_id LEFT JOIN exams e ON e.exam_id = s.exam_id"
            " LEFT JOIN copy_access a ON a.copy_id = p.copy_id WHERE p.page_id = %(page)s",
            {"page": page_id, "caller": caller.user_id},
        )
    if row is None or not _may_see(row, caller):
        raise NotFound("PAGE_NOT_FOUND", "there is no such page")
    is_unmasked = caller.has(*UNMASKED_ROLES)
    sha256 = row["picture_sha256"] if is_unmasked else row["masked_picture_sha256"]
    if sha256 is None:
        raise NotFound("PICTURE_NOT_AVAILABLE", "this page could not be pictured")
    return Picture(sha256, not is_unmasked and sha256 != row["picture_sha256"])


def _may_see(row: Mapping[str, Any], caller: Principal) -> bool:
    if caller.has(*_STAFF):
        return True
    is_mine = row["assigned"] in (None, caller.user_id)
    return caller.has("marker") and bool(row["is_corrector"]) and is_mine
