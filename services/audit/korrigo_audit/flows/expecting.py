"""Acts that a copy's status promises and the trail lacks (domain.md 1.3). Started by `korrigo check_data_integrity`."""

from __future__ import annotations

from collections.abc import Mapping

from korrigo_kit.db import Database

# What must have been told of a copy that has come so far.
_EXPECTED: Mapping[str, tuple[str, ...]] = {
    "STAGING": (),
    "READY": ("IMPORT", "VALIDATE"),
    "LOCKED": ("IMPORT", "VALIDATE", "LOCK"),
    "GRADING_IN_PROGRESS": ("IMPORT", "VALIDATE", "LOCK"),
    "GRADING_FAILED": ("IMPORT", "VALIDATE", "LOCK", "FINALIZE"),
    "GRADED": ("IMPORT", "VALIDATE", "LOCK", "FINALIZE success"),
}


def missing_acts(database: Database, statuses: Mapping[str, str]) -> list[tuple[str, str]]:
    """List (copy, action) of what is missing for copies of these statuses."""
    with database.transaction() as tx:
        rows = tx.all(
            "SELECT subject_id AS id, array_agg(DISTINCT action || CASE WHEN action = 'FINALIZE'"
            "   AND metadata ->> 'success' = 'true' THEN ' success' ELSE '' END) AS actions FROM records"
            " WHERE subject_type = 'copy' AND subject_id = ANY(%s) AND action IS NOT NULL GROUP BY subject_id",
            (list(statuses),),
        )
    told = {row["id"]: set(row["actions"]) for row in rows}
    return [
        (copy_id, action)
        for copy_id, status in statuses.items()
        for action in _EXPECTED.get(status, ())
        if action not in told.get(copy_id, set())
    ]
