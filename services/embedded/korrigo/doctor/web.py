"""What a browser meets: a room that is away, answers that fail."""

from __future__ import annotations

import json

from korrigo.doctor.causes import CERTAIN, SEEN, Blind, Cause, Found, Remedy
from korrigo.doctor.monitors import get
from korrigo.doctor.patient import Patient


def room_down(patient: Patient) -> Found | None:
    """Tell whether a room, or the whole product, does not answer."""
    if patient.is_up is False:
        return Found(CERTAIN, (f"`korrigo up` does not run on {patient.home.root}",), {"room": "all"})
    evidence = []
    silent: list[str] = []
    blind = ""
    try:
        silent = list(patient.silent_rooms)
    except Blind as error:
        blind = str(error)
    if silent:
        evidence.append(f"no answer over gRPC from {', '.join(silent)}")
    if patient.url:
        evidence += _web_problem(patient.url)
    elif blind:
        raise Blind(f"{blind}, nor KORRIGO_HTTP__PUBLIC_URL that of the product")
    locked_out = _locked_out(patient)
    evidence += [f"{name} does not get into the database, which answers others" for name in locked_out]
    if patient.is_up and not patient.is_child_well("api"):
        evidence.append("the api process of `korrigo up` is dead or stopped")
    if evidence and patient.restarts.get("api"):
        evidence.append(f"`korrigo up` has started it again {patient.restarts['api']} times")
    if not evidence:
        return None
    values = {"room": next(iter([*silent, *locked_out]), "grading"), "pid": str(patient.children.get("api", "PID"))}
    return Found(SEEN + 0.09, tuple(evidence), values)


def _web_problem(url: str) -> list[str]:
    """Ask whether the process lives; a database that is away makes it unready, not dead."""
    try:
        status, _ = get(f"{url}/api/health/live")
    except OSError as error:
        return [f"{url} does not answer: {getattr(error, 'reason', None) or error}"]
    return [f"{url}/api/health/live answers {status}"] if status != 200 else []


def _locked_out(patient: Patient) -> list[str]:
    """List the rooms that live and do not get into the database, which answers others."""
    if not patient.url or not patient.is_database_up:
        return []
    try:
        _, body = get(f"{patient.url}/api/health")
        checks = json.loads(body)["checks"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name, found in checks.items() if found.get("database") == "unavailable"]


CAUSES = (
    Cause(
        "room-down",
        "A room does not answer",
        ("web", "import-stuck", "finalization-failing", "lock-conflicts", "high-latency", "missing-audit-events",
         "monitoring"),
        room_down,
        (
            Remedy("korrigo up", "Start the product (as a service: systemctl start korrigo).",
                   "korrigo doctor", "stopped"),
            Remedy("kill -KILL {pid}", "End an api process that hangs; `korrigo up` starts another at once.",
                   "ps -o pid,stat,etime,args -p {pid}", "embedded"),
            Remedy("korrigo run {room}", "Start the room again.", "korrigo config show", "production"),
        ),
        "target-down",
    ),
)  # fmt: skip
