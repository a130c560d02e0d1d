"""Copies that stay STAGING: why an import does not come to its end (playbooks, scenario 1)."""

from __future__ import annotations

from korrigo.doctor.causes import LIKELY, POSSIBLE, SEEN, Cause, Found, Remedy, some, span
from korrigo.doctor.patient import Patient, Row
from korrigo.rooms import NAMES

# Three silences of a worker and the time that its round of asking other rooms may take (kit.work).
_SILENCE_SECONDS = 30
_FRESH_SECONDS = 300
# Part of the document: a new attempt cannot help.
_DOCUMENT = ("CORRUPTED_PDF", "ENCRYPTED", "JAVASCRIPT", "ACTIVE_CONTENT", "EMPTY_PDF", "TOO_MANY_PAGES",
             "PAGE_TOO_LARGE", "FILE_TOO_LARGE", "EMPTY_FILE", "INVALID_MIME_TYPE")  # fmt: skip
_TIME = ("TIMEOUT", "RESOURCE_LIMIT")
# Named by other causes.
_ELSEWHERE = ("WORKER_LOST", "DISK_FULL", "OBJECT_STORE_UNAVAILABLE", "BLOB_NOT_FOUND", "CANCELLED")

# A scan that FAILED waits for somebody; a refused one is over, and is told for a quarter of an hour.
_FAILURES = """
SELECT s.id::text AS id, s.state, coalesce(s.error_reason, j.error_reason) AS reason,
       coalesce(s.error_message, j.error_message, '') AS message, j.attempts,
       extract(epoch FROM clock_timestamp() - coalesce(s.finished_at, s.updated_at))::float8 AS age
FROM scans s JOIN jobs j ON j.id = s.job_id
WHERE s.state = 'FAILED' OR (s.state = 'REJECTED' AND s.finished_at > clock_timestamp() - interval '15 minutes')
   OR (s.state IN ('RECEIVED', 'RUNNING') AND j.state IN ('READY', 'RUNNING', 'QUARANTINED')
       AND j.error_reason IS NOT NULL)
ORDER BY coalesce(s.finished_at, s.updated_at) DESC LIMIT 200
"""


def _failures(patient: Patient) -> list[Row]:
    return patient.rows(_FAILURES, room="ingest")


def _of(rows: list[Row], word: str) -> Found | None:
    """Make the finding of failures of one kind; fresh or open ones weigh more than one that is over."""
    if not rows:
        return None
    is_open = any(row["state"] != "REJECTED" for row in rows)
    is_fresh = rows[0]["age"] < _FRESH_SECONDS or len(rows) > 2
    reasons = some(sorted({f"{row['reason']}" for row in rows}))
    evidence = [f"{len(rows)} {word} ended with {reasons}, the last {span(rows[0]['age'])} ago"]
    evidence += [f"scan {row['id']}: {row['state']}, {row['reason']}, {row['message']}" for row in rows[:3]]
    return Found(LIKELY + 0.1 if is_open or is_fresh else POSSIBLE, tuple(evidence), {"scan": rows[0]["id"]})


def _corrupted_pdf(patient: Patient) -> Found | None:
    return _of([row for row in _failures(patient) if row["reason"] in _DOCUMENT], "imports")


def _import_timeout(patient: Patient) -> Found | None:
    return _of([row for row in _failures(patient) if row["reason"] in _TIME], "imports")


def _rolled_back(patient: Patient) -> Found | None:
    known = (*_DOCUMENT, *_TIME, *_ELSEWHERE)
    rows = [row for row in _failures(patient) if row["reason"] not in known]
    found = _of(rows, "imports")
    if found is None:
        return None
    ids = {row["id"] for row in rows}
    lines = patient.lines.where(
        lambda line: line.get("level") in ("ERROR", "CRITICAL") and bool(line.get("exc_info"))
        and (line.get("service") == "ingest" or line.get("scan_id") in ids)
    )  # fmt: skip
    traces = sorted({str(line["exc_info"]).strip().splitlines()[-1][:200] for line in lines})
    return Found(found.certainty, (*found.evidence, *(f"exception: {text}" for text in traces[:3])), found.values)


_BEATS = """
SELECT (SELECT extract(epoch FROM clock_timestamp() - max(beat_at)) FROM heartbeats WHERE name LIKE 'worker:%')::float8
           AS silent,
       (SELECT count(*) FROM jobs WHERE state = 'READY' AND not_before < clock_timestamp() - interval '5 seconds')
           AS due
"""


def worker_down(patient: Patient) -> Found | None:
    """Tell whether a room has work or events and nobody who takes them."""
    found = {room: patient.row(_BEATS, room=room) for room in NAMES}
    silent = {
        room: row["silent"] for room, row in found.items() if row["silent"] is None or row["silent"] > _SILENCE_SECONDS
    }
    is_child_ill = bool(patient.is_up) and "worker" in patient.children and not patient.is_child_well("worker")
    if not silent and not is_child_ill:
        return None
    due = sum(row["due"] for room, row in found.items() if room in silent or is_child_ill)
    evidence = [
        f"{room}: no worker gave a sign " + ("ever" if seconds is None else f"for {span(seconds)}")
        for room, seconds in silent.items()
    ]
    if is_child_ill:
        evidence.append("the worker process of `korrigo up` is dead or stopped")
    if due:
        evidence.append(f"{due} jobs are due and nobody takes them")
    if "worker" in patient.restarts:
        evidence.append(f"`korrigo up` has started it again {patient.restarts['worker']} times")
    room = next((name for name in silent if found[name]["due"]), next(iter(silent), "ingest"))
    values = {"room": room, "pid": str(patient.children.get("worker", "PID"))}
    return Found(SEEN + (0.06 if due else 0.04), tuple(evidence), values)


CAUSES = (
    Cause(
        "worker-down",
        "No worker takes the jobs",
        ("import-stuck", "finalization-failing", "high-latency", "missing-audit-events", "broker", "monitoring"),
        worker_down,
        (
            Remedy("kill -KILL {pid}", "End a worker that hangs; `korrigo up` starts another at once.",
                   "ps -o pid,stat,etime,args -p {pid}", "embedded"),
            Remedy("korrigo work {room}", "Start a worker of the room; its jobs go on where they were.",
                   "korrigo queue status", "production"),
        ),
        "workers-down",
    ),
    Cause(
        "import-rolled-back",
        "The import's transaction was rolled back by an error of ours",
        ("import-stuck", "missing-audit-events"),
        _rolled_back,
        (
            Remedy("korrigo logs grep {scan} --level ERROR", "Read the exception; give it to the developers."),
            Remedy("korrigo intervene RetryImport scan/{scan} --reason 'cause removed'",
                   "Import again from the stored bytes once the cause is gone.",
                   "korrigo intervene RetryImport scan/{scan} --reason 'cause removed' --dry-run"),
        ),
        "import-stuck",
    ),
    Cause(
        "import-timeout",
        "A scan took more time or memory than it may",
        ("import-stuck",),
        _import_timeout,
        (
            Remedy("korrigo intervene RetryImport scan/{scan} --reason 'machine was busy'",
                   "Import again, when the machine was busy; a hostile file ends the same way.",
                   "korrigo intervene RetryImport scan/{scan} --reason 'machine was busy' --dry-run"),
            Remedy("korrigo config show", "See KORRIGO_IMPORT__* for the limits, and ask for smaller files."),
        ),
        "ocr-errors",
    ),
    Cause(
        "corrupted-pdf",
        "The file itself cannot be imported",
        ("import-stuck",),
        _corrupted_pdf,
        (
            Remedy("korrigo logs grep {scan}",
                   "Tell the uploader the reason; scan the sheets anew and upload that. Refused files stay refused."),
        ),
        "ocr-errors",
    ),
)  # fmt: skip
