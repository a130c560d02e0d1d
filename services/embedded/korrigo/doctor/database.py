"""PostgreSQL itself: away, full, blocked (what it does slowly is in high_latency)."""

from __future__ import annotations

from korrigo.doctor.causes import CERTAIN, Cause, Found, Remedy
from korrigo.doctor.lines import quote
from korrigo.doctor.names import SCENARIOS
from korrigo.doctor.patient import Patient


def _database_down(patient: Patient) -> Found | None:
    if patient.is_database_up or patient.is_database_full:
        return None
    evidence = [f"no connection: {patient.database_error[:300]}"]
    if patient.is_up is False:
        evidence.append(f"`korrigo up` does not run on {patient.home.root}")
    if patient.is_up and not patient.is_child_well("postgres"):
        evidence.append("the postgres process of `korrigo up` is dead or stopped")
    if patient.restarts.get("postgres"):
        evidence.append(f"`korrigo up` has started it again {patient.restarts['postgres']} times")
    evidence += [quote(line) for line in patient.lines.having("DATABASE_UNAVAILABLE", "database unavailable")[-2:]]
    return Found(CERTAIN, tuple(evidence), {"pid": str(patient.children.get("postgres", "PID"))})


CAUSES = (
    Cause(
        "database-down",
        "The database does not answer",
        ("database", *(name for name in SCENARIOS if name != "database")),
        _database_down,
        (
            Remedy("korrigo up", "Start the product, the database with it (as a service: systemctl start korrigo).",
                   "korrigo doctor", "stopped"),
            Remedy("kill -KILL {pid}",
                   "End a server that hangs; `korrigo up` starts another at once, and what was committed is there.",
                   "ps -o pid,stat,etime,args -p {pid}", "embedded"),
            Remedy("korrigo doctor scenario storage", "See whether its disk is full: then it cannot start."),
            Remedy("korrigo migrate --dry-run", "Try the address and the role of KORRIGO_DATABASE__URL.", None,
                   "production"),
        ),
        "database-down",
    ),
)  # fmt: skip
