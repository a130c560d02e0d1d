"""Who may see and mark a copy (decisions.md, Lock; domain.md 1.20): roles first, then the copy itself.

A marker sees the copies of the exams he is a corrector of, assigned to him or to nobody; every other copy does not
exist for him (404). Students see nothing here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

READERS = ("admin", "scan_operator", "lead_marker", "auditor", "marker")
SEES_ALL = ("admin", "scan_operator", "lead_marker", "auditor")
MARKERS = ("admin", "lead_marker", "marker")
MARKS_ANY = ("admin", "lead_marker")
# Who harmonises or audits works on anonymous copies like a marker.
SEES_IDENTITY = ("admin", "scan_operator")


def may_see(
    roles: Collection[str], user_id: str, corrector_ids: Sequence[str], assigned_corrector_id: str | None
) -> bool:
    """Tell whether an account that has a reading role sees this copy."""
    if any(role in SEES_ALL for role in roles):
        return True
    return "marker" in roles and user_id in corrector_ids and assigned_corrector_id in (None, user_id)


def is_corrector(roles: Collection[str], user_id: str, corrector_ids: Sequence[str]) -> bool:
    """Tell whether an account marks copies of this exam, whoever this one is assigned to."""
    return any(role in MARKS_ANY for role in roles) or ("marker" in roles and user_id in corrector_ids)


def is_assigned(roles: Collection[str], user_id: str, assigned_corrector_id: str | None) -> bool:
    """Tell whether the assignment lets this account lock the copy."""
    return any(role in MARKS_ANY for role in roles) or assigned_corrector_id in (None, user_id)


def sees_identity(roles: Collection[str]) -> bool:
    """Tell whether unmasked pictures are for this account (decisions.md, Anonymity), as ingest tells it too."""
    return any(role in SEES_IDENTITY for role in roles)
