"""When a copy may be finalised, and what is said when its final PDF failed (domain.md 1.2, 1.6, 1.12)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from korrigo_grading.domain.scores import Sheet
from korrigo_kit.errors import StateConflict

SCORE_INCOMPLETE = "SCORE_INCOMPLETE"


def check(sheet: Sheet, orphaned_annotation_ids: Sequence[str]) -> None:
    """Raise StateConflict (SCORE_INCOMPLETE, ANNOTATION_ORPHANED) when the copy is not ready for its final PDF.

    Every question is scored or "NT"; no annotation at all is fine (a blank script).
    """
    if not sheet.is_complete:
        raise StateConflict(SCORE_INCOMPLETE, "not every question is scored", missing=list(sheet.missing))
    if orphaned_annotation_ids:
        raise StateConflict(
            "ANNOTATION_ORPHANED",
            "an annotation stands on a page that left the copy; move or delete it",
            annotation_ids=list(orphaned_annotation_ids),
        )


def error_message(reason: str) -> str:
    """Write a failure as the playbooks look for it."""
    return f"Failed to generate final PDF: {reason}"


# What the playbooks look for in the log, by the reason that render gives (domain.md 1.18).
_PLAYBOOK_LINES = {
    "ANNOTATION_OUT_OF_PAGE": "Annotation out of bounds",
    "MISSING_PAGE": "Image not found",
    "BLOB_NOT_FOUND": "pdf_source not found",
    "SOURCE_UNREADABLE": "pdf_source not found",
}


def playbook_line(reason: str) -> str:
    """Write the cause of a failure as the playbooks look for it in the log."""
    found = _PLAYBOOK_LINES.get(reason)
    return f"flatten_copy failed: {found}: {reason}" if found else f"flatten_copy failed: {reason}"


def marker_code(user_id: str) -> str:
    """Make the code by which the score page names the marker: stable, and no name."""
    return "M" + hashlib.sha256(user_id.encode()).hexdigest()[:6].upper()
