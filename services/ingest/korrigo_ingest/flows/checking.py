"""Do the rows of ingest agree with each other? Started by `korrigo check_data_integrity`; changes nothing."""

from __future__ import annotations

from korrigo_kit.room import Runtime

# SQL answering subject and detail; each must answer no row in a sound database.
_RULES = {
    "COPY_WITHOUT_PAGES": """
        SELECT c.copy_id::text AS subject, 'assembled without a page' AS detail FROM scan_copies c
        WHERE c.assembly > 0 AND NOT EXISTS (SELECT 1 FROM pages p WHERE p.copy_id = c.copy_id)""",
    "PAGES_NOT_CONSECUTIVE": """
        SELECT copy_id::text AS subject, 'pages ' || count(*) || ', last index ' || max(copy_index) AS detail
        FROM pages GROUP BY copy_id HAVING max(copy_index) + 1 <> count(*)""",
    "SCAN_WITHOUT_JOB": """
        SELECT s.id::text AS subject, s.state AS detail FROM scans s LEFT JOIN jobs j ON j.id = s.job_id
        WHERE s.state IN ('RECEIVED', 'RUNNING')
            AND (j.id IS NULL OR j.state IN ('DONE', 'FAILED', 'QUARANTINED'))""",
    "BLOB_NOT_REFERENCED": """
        SELECT p.page_id::text AS subject, p.picture_sha256 AS detail FROM pages p
        WHERE p.picture_sha256 IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM blob_refs r WHERE r.sha256 = p.picture_sha256)""",
}


def check(rt: Runtime) -> list[tuple[str, str, str]]:
    """Return what is wrong as (code, subject, detail)."""
    found: list[tuple[str, str, str]] = []
    with rt.db.transaction() as tx:
        for code, statement in _RULES.items():
            found += [(code, row["subject"], row["detail"]) for row in tx.all(statement)]
    return found
