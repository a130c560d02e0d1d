"""The check of the machine and the product as a whole: the playbooks' six headings, and what keeps it from starting.

Each check answers with True, False or None (= not applicable now), a text, and what to do when it is False.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from korrigo import postgres
from korrigo.doctor import postgres as questions
from korrigo.doctor import storage
from korrigo.doctor.causes import Blind, size, some, span
from korrigo.doctor.import_stuck import worker_down
from korrigo.doctor.lines import RECENT_SECONDS
from korrigo.doctor.monitors import get
from korrigo.doctor.patient import Patient
from korrigo.doctor.web import room_down
from korrigo.privileges import database_user, first_unreachable
from korrigo.rooms import NAMES
from korrigo_kit.errors import KorrigoError

_MIN_FILES = 1024
# A refused scan or a failed attempt writes some; a part that is ill writes many.
_ERRORS = 10
# The six headings of the playbooks' script, in its order, after what is ours to ask before anything else.
MACHINE = "machine"
SERVICES = "services"
QUEUES = "queue length"
CONNECTIONS = "database connections"
DISK = "disk space"
ERRORS = "errors of the last hour"
STUCK = "stuck copies"

Answer = tuple[bool | None, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check; `is_ok` None = not applicable now."""

    name: str
    heading: str
    is_ok: bool | None
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A question to the patient, and what to do when the answer is False."""

    name: str
    heading: str
    ask: Callable[[Patient], Answer]
    hint: str


def examine(patient: Patient, checks: Sequence[Check] | None = None) -> list[Finding]:
    """Ask everything; nothing that is away stops the rest."""
    return [_asked(check, patient) for check in checks or CHECKS]


def _asked(check: Check, patient: Patient) -> Finding:
    try:
        is_ok, text = check.ask(patient)
    except Blind as blind:
        is_ok, text = None, f"unknown: {blind}"
    except KorrigoError as error:
        is_ok, text = False, f"{error.message} ({error.reason})"
    except (OSError, ValueError) as error:
        is_ok, text = False, str(error)
    return Finding(check.name, check.heading, is_ok, text, check.hint if is_ok is False else "")


# ---------------------------------------------------------------------------------------------- the machine
def _home(patient: Patient) -> Answer:
    root = patient.home.root
    if not patient.is_embedded and not root.exists():
        return None, "production: no home"
    if not root.exists():
        return None, f"{root} will be made at the first start"
    blocked = first_unreachable(root, database_user())
    if blocked is not None:
        return False, f"the database's user cannot enter {blocked}"
    return os.access(root, os.W_OK), str(root)


def _files(_: Patient) -> Answer:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft >= _MIN_FILES, f"{soft} open files per process"


def _postgres(patient: Patient) -> Answer:
    if not patient.is_embedded:
        return None, "another server is configured"
    found = postgres.find_binaries(os.environ, patient.home.postgres / "data")
    return True, f"PostgreSQL {found.major} in {found.folder}"


def _settings(patient: Patient) -> Answer:
    try:
        given = sum(origin != "default" for _, _, origin in patient.settings.show())
    except Blind as blind:
        return False, str(blind)
    return True, f"{given} given, all known"


# ---------------------------------------------------------------------------------------------- 1 services
def _running(patient: Patient) -> Answer:
    if patient.is_up is None:
        return None, "production: the rooms are looked after elsewhere"
    if not patient.is_up:
        return None, "`korrigo up` does not run on this home"
    state = patient.home.state() or {}
    restarts = ", ".join(f"{name} {count}" for name, count in patient.restarts.items())
    text = f"{state.get('url')} since {state.get('started_at')}" + (f"; restarted: {restarts}" if restarts else "")
    ill = [name for name in patient.children if name not in ("migrate", "backup") and not patient.is_child_well(name)]
    return bool(state.get("is_ready")) and not ill, text + (f"; dead or stopped: {', '.join(ill)}" if ill else "")


def _database(patient: Patient) -> Answer:
    if patient.is_embedded and not patient.is_up:
        return None, "not running"
    if not patient.is_database_up:
        return False, patient.database_error
    from korrigo.commands.migrate import due

    behind = due(patient.settings)
    return not behind, "; ".join(behind) or "answers, every schema is at its newest version"


def _broker(patient: Patient) -> Answer:
    if patient.is_embedded and not patient.is_up:
        return None, "not running"
    return patient.queue_lengths is not None, "answers" if patient.queue_lengths is not None else "does not answer"


def _rooms(patient: Patient) -> Answer:
    if patient.is_up is False:
        return None, "not running"
    found = room_down(patient)
    return found is None, "; ".join(found.evidence) if found else "every room answers"


def _workers(patient: Patient) -> Answer:
    if patient.is_embedded and not patient.is_up:
        return None, "not running"
    found = worker_down(patient)
    return found is None, "; ".join(found.evidence) if found else "every room has a living worker"


def _health(patient: Patient) -> Answer:
    if not patient.url:
        return None, "not running" if patient.is_embedded else "KORRIGO_HTTP__PUBLIC_URL is not set"
    _, body = get(f"{patient.url}/api/health", 5)
    found = json.loads(body)
    return found.get("status") == "healthy", json.dumps(found)


# ---------------------------------------------------------------------------------------------- 2 to 6
_DUE = """
SELECT count(*) FILTER (WHERE state = 'READY' AND not_before <= clock_timestamp()) AS due,
       coalesce(extract(epoch FROM clock_timestamp() - min(not_before) FILTER (WHERE state = 'READY'
           AND not_before <= clock_timestamp())), 0)::float8 AS oldest FROM jobs
"""
_BACKLOG, _LATE_SECONDS = 50, 60


def _queues(patient: Patient) -> Answer:
    if patient.is_embedded and not patient.is_up:
        return None, "not running"
    found = {room: patient.row(_DUE, room=room) for room in NAMES}
    text = ", ".join(f"{room} {row['due']}" for room, row in found.items())
    due, oldest = sum(row["due"] for row in found.values()), max(row["oldest"] for row in found.values())
    waits = f"; the first waits for {span(oldest)}" if due else ""
    return due <= _BACKLOG and oldest <= _LATE_SECONDS, f"jobs due: {text}{waits}"


def _connections(patient: Patient) -> Answer:
    if patient.is_embedded and not patient.is_up:
        return None, "not running"
    use = questions.use(patient)
    is_ok = use.busy <= 50 and use.total <= 0.8 * use.allowed
    return is_ok, f"{use.total} of {use.allowed} allowed, {use.busy} busy"


def _disk(patient: Patient) -> Answer:
    folders = {str(folder): name for name, folder in patient.volumes.items()}
    if not folders and patient.home.root.exists():
        folders = {str(patient.home.root): "home"}
    shown, is_ok = [], True
    seen = set()
    for folder, name in folders.items():
        found = os.statvfs(folder)
        free, whole = found.f_bavail * found.f_frsize, max(1, found.f_blocks * found.f_frsize)
        is_ok = is_ok and free / whole >= storage.LOW
        device = os.stat(folder).st_dev
        if device not in seen:
            shown.append(f"{size(free)} free of {size(whole)} ({name})")
        seen.add(device)
    return is_ok, "; ".join(shown)


def _errors(patient: Patient) -> Answer:
    if not patient.lines.is_known:
        return None, "no log files on this machine"
    # A marker who forgot a question is told so himself; the line is the guide's, and no fault.
    lines = [line for line in patient.lines.errors if line.get("reason") != "SCORE_INCOMPLETE"]
    # What was healed half an hour ago is told, and no longer held against the product.
    since = datetime.now(UTC) - timedelta(seconds=RECENT_SECONDS)
    recent = [line for line in lines if line["at"] >= since]
    last = some([str(line.get("message", ""))[:100] for line in lines[-2:]])
    is_critical = any(line["level"] == "CRITICAL" for line in recent)
    text = f"{len(lines)} lines of ERROR or above, {len(recent)} of them in the last {RECENT_SECONDS // 60} minutes"
    return not is_critical and len(recent) <= _ERRORS, text + (f"; the last: {last}" if lines else "")


def _stuck(patient: Patient) -> Answer:
    if patient.is_embedded and not patient.is_up:
        return None, "not running"
    runtimes = [patient.room(room) for room in NAMES]
    found = patient.ask(lambda: [item for runtime in runtimes for item in runtime.room.stuck(runtime)])
    copies = sum(item.copies for item in found)
    waiting = patient.row(
        "SELECT count(*) AS n FROM copies WHERE status = 'STAGING' AND deleted_at IS NULL"
        " AND created_at < clock_timestamp() - interval '1 hour'",
        room="grading",
    )["n"]
    return not copies, f"{copies} stuck; {waiting} STAGING for more than an hour, perhaps for a person"


CHECKS = (
    Check("home", MACHINE, _home, "give the folder to the user that runs Korrigo"),
    Check("files", MACHINE, _files, "raise the limit of open files (ulimit -n, LimitNOFILE=)"),
    Check("postgres", MACHINE, _postgres, "see KORRIGO_POSTGRES__BINARIES"),
    Check("settings", MACHINE, _settings, "korrigo config show"),
    Check("running", SERVICES, _running, "korrigo doctor scenario web"),
    Check("database", SERVICES, _database, "korrigo doctor scenario database"),
    Check("broker", SERVICES, _broker, "korrigo doctor scenario broker"),
    Check("rooms", SERVICES, _rooms, "korrigo doctor scenario web"),
    Check("workers", SERVICES, _workers, "korrigo doctor scenario import-stuck"),
    Check("health", SERVICES, _health, "korrigo doctor scenario web"),
    Check("queues", QUEUES, _queues, "korrigo doctor scenario high-latency"),
    Check("connections", CONNECTIONS, _connections, "korrigo doctor db"),
    Check("disk", DISK, _disk, "korrigo doctor scenario storage"),
    Check("errors", ERRORS, _errors, "korrigo logs grep '\"ERROR\"'"),
    Check("stuck", STUCK, _stuck, "korrigo stuck"),
)
