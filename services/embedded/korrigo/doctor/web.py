"""What a browser meets: a room that is away, answers that fail."""

from __future__ import annotations

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
    if patient.is_up and not patient.is_child_well("api"):
        evidence.append("the api process of `korrigo up` is dead or stopped")
    if evidence and patient.restarts.get("api"):
        evidence.append(f"`korrigo up` has started it again {patient.restarts['api']} times")
    if not evidence:
        return None
    values = {"room": silent[0] if silent else "grading", "pid": str(patient.children.get("api", "PID"))}
    return Found(SEEN + 0.09, tuple(evidence), values)


def _web_problem(url: str) -> list[str]:
    """Ask whether the process lives; a database that is away makes it unready, not dead."""
    try:
        status, _ = get(f"{url}/api/health/live")
    except OSError as error:
        return [f"{url} does not answer: {getattr(error, 'reason', None) or error}"]
    return [f"{url}/api/health/live answers {status}"] if status != 200 else []


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
