"""`korrigo doctor db --end PID`: the one remedy that lies in the database itself; no diagnosis calls this."""

from __future__ import annotations

from korrigo.doctor.patient import Patient, Row
from korrigo_kit.errors import Forbidden, NotFound

_SESSION = """
SELECT pid, coalesce(usename, '') AS "user", coalesce(state, '') AS state, application_name AS application,
       left(regexp_replace(query, '\\s+', ' ', 'g'), 200) AS query
FROM pg_stat_activity WHERE pid = %(pid)s AND pid <> pg_backend_pid() AND datname = current_database()
"""


def end(patient: Patient, pid: int, *, is_dry_run: bool) -> Row:
    """Cancel what a session runs, or end it when it only holds a transaction open; tells which.

    Raises NotFound (SESSION_NOT_FOUND) and Forbidden (NOT_ALLOWED_BY_DATABASE).
    """
    found = patient.rows(_SESSION, {"pid": pid})
    if not found:
        raise NotFound("SESSION_NOT_FOUND", f"no session of this database has pid {pid}; it is over, perhaps")
    session = found[0]
    is_idle = session["state"].startswith("idle")
    word = "ended" if is_idle else "cancelled"
    if is_dry_run:
        return session | {"done": f"would be {word}"}
    act = "pg_terminate_backend" if is_idle else "pg_cancel_backend"
    if not patient.row(f"SELECT {act}(%(pid)s) AS done", {"pid": pid})["done"]:
        raise Forbidden("NOT_ALLOWED_BY_DATABASE", "the database did not let this role do it")
    return session | {"done": word}
