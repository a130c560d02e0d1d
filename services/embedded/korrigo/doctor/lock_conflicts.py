"""Locks that hold people up: whose browser is gone, whose heartbeat does not arrive, who shows a wrong token
(playbooks, scenario 3)."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from korrigo.doctor.causes import LIKELY, POSSIBLE, SEEN, Cause, Found, Remedy, some, span
from korrigo.doctor.lines import quote
from korrigo.doctor.patient import Patient, Row
from korrigo_grading.settings import LockSettings

# A holder says every 60 s that he is there (domain.md 1.4); three silences are no accident.
_SILENT_SECONDS = 180
_LINGERS_SECONDS = 30
_MANY = 5
_GOES_ON = timedelta(seconds=30)

# Whoever writes is there, so a silent lock under which something was written lost its heartbeat, not its holder.
_LOCKS = """
SELECT l.copy_id::text AS copy, l.expires_at > clock_timestamp() AS is_live,
       extract(epoch FROM clock_timestamp() - l.heartbeat_at)::float8 AS silent,
       extract(epoch FROM clock_timestamp() - l.expires_at)::float8 AS over,
       extract(epoch FROM greatest((SELECT max(a.updated_at) FROM annotations a WHERE a.copy_id = l.copy_id
               AND a.fence = l.fence),
           (SELECT max(s.updated_at) FROM scores s WHERE s.copy_id = l.copy_id AND s.fence = l.fence))
           - l.heartbeat_at)::float8 AS wrote_after
FROM copy_locks l ORDER BY l.heartbeat_at LIMIT 1000
"""
_ORPHANED = """
SELECT c.id::text AS copy, extract(epoch FROM clock_timestamp() - c.updated_at)::float8 AS age FROM copies c
WHERE c.status = 'LOCKED' AND c.deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM copy_locks l WHERE l.copy_id = c.id)
    AND c.updated_at < clock_timestamp() - interval '30 seconds' ORDER BY c.updated_at LIMIT 50
"""


class _Refused:
    """The refusals of one kind within a quarter of an hour: from the log lines, or from Prometheus."""

    def __init__(self, patient: Patient, conflict: str, text: str) -> None:
        self.lines = patient.lines.having(text)
        grown = patient.monitors.increase(f'grading_lock_conflicts_total{{conflict_type="{conflict}"}}')
        self.count = max(len(self.lines), round(grown or 0))
        named = Counter(str(line["copy_id"]) for line in self.lines if line.get("copy_id"))
        self.copies = [name for name, _ in named.most_common()]

    def found(self, what: str, certainty: float = LIKELY) -> Found | None:
        if not self.count:
            return None
        evidence = [f"{self.count} times within 15 min: {what}"]
        # Of two kinds of refusals the one that goes on is what people call about.
        goes_on = bool(self.lines) and datetime.now(UTC) - self.lines[-1]["at"] < _GOES_ON
        evidence += ["it goes on"] if goes_on else []
        if self.copies:
            evidence.append(f"copies {some(self.copies)}")
        evidence += [quote(line) for line in self.lines[-2:]]
        values = {"copy": self.copies[0]} if self.copies else {}
        certainty += (0.1 if self.count >= _MANY else 0) + (0.05 if goes_on else 0)
        return Found(certainty, tuple(evidence), values)


def _silent(patient: Patient) -> list[Row]:
    stale_seconds = patient.settings.get(LockSettings).stale_seconds
    after = min(stale_seconds, _SILENT_SECONDS)
    return [row for row in patient.rows(_LOCKS, room="grading") if row["is_live"] and row["silent"] > after]


def _is_written(row: Row) -> bool:
    return (row["wrote_after"] or 0) > 1


def _browser_crash(patient: Patient) -> Found | None:
    rows = [row for row in _silent(patient) if not _is_written(row)]
    if not rows:
        return None
    evidence = (
        f"{len(rows)} live locks whose holder is silent and has written nothing since",
        *(f"copy {row['copy']}: silent for {span(row['silent'])}" for row in rows[:3]),
    )
    return Found(SEEN, evidence, {"copy": rows[0]["copy"]})


def _heartbeat_loss(patient: Patient) -> Found | None:
    rows = [row for row in _silent(patient) if _is_written(row)]
    refused = _Refused(patient, "expired", "Lock expired").found("a holder wrote after his lock had ended")
    if not rows:
        return refused
    evidence = (
        f"{len(rows)} holders work while their heartbeats do not arrive",
        *(f"copy {row['copy']}: last heartbeat {span(row['silent'])} ago, written to since" for row in rows[:3]),
    )
    return Found(SEEN + 0.05, (*evidence, *(refused.evidence if refused else ())), {"copy": rows[0]["copy"]})


def _token_mismatch(patient: Patient) -> Found | None:
    refused = _Refused(patient, "token_mismatch", "Invalid lock token")
    return refused.found("a client showed a token that is not its lock's")


def _concurrent_finalize(patient: Patient) -> Found | None:
    refused = _Refused(patient, "already_graded", "already graded (concurrent finalization detected)")
    return refused.found("a copy was finalised a second time and refused")


def _contested_copy(patient: Patient) -> Found | None:
    refused = _Refused(patient, "already_locked", "Copy is locked by another user")
    return refused.found("somebody wanted a copy that another works on", POSSIBLE) if refused.count >= _MANY else None


def _expired_lock(patient: Patient) -> Found | None:
    rows = [
        row for row in patient.rows(_LOCKS, room="grading") if not row["is_live"] and row["over"] > _LINGERS_SECONDS
    ]
    orphaned = patient.rows(_ORPHANED, room="grading")
    refused = _Refused(patient, "expired", "Lock expired")
    evidence = [f"copy {row['copy']}: its lease ended {span(row['over'])} ago and nobody took it back" for row in rows]
    evidence += [f"copy {row['copy']} is LOCKED without a lock for {span(row['age'])}" for row in orphaned]
    if evidence:
        copy = (rows or orphaned)[0]["copy"]
        return Found(SEEN + 0.04, (f"{len(evidence)} locks linger", *evidence[:3]), {"copy": copy})
    return refused.found("a write or finalisation came after the lock had ended", LIKELY - 0.05)


_RELEASE = Remedy(
    "korrigo intervene ReleaseExpiredLocks all --reason 'swept by hand'",
    "Do what the sweeper does every ten seconds, now.",
    "korrigo intervene ReleaseExpiredLocks all --reason 'swept by hand' --dry-run",
)
_FORCE = Remedy(
    "korrigo force_unlock_copy {copy} --reason 'holder is gone'",
    "End the lock after asking its holder; what he wrote stays. It ends by itself when its lease is over.",
    "korrigo force_unlock_copy {copy} --reason 'holder is gone' --dry-run",
)

CAUSES = (
    Cause(
        "expired-lock",
        "A lock has ended: it lingers, or work came after its end",
        ("lock-conflicts", "finalization-failing"),
        _expired_lock,
        (_RELEASE, Remedy("korrigo doctor scenario monitoring", "See whether the sweeper comes round.")),
        "expired-locks",
    ),
    Cause(
        "heartbeat-loss",
        "A holder works, but his heartbeats do not arrive",
        ("lock-conflicts",),
        _heartbeat_loss,
        (
            Remedy("korrigo logs grep {copy} --level WARNING",
                   "See the refusals; his network or a proxy drops small requests. Locking again and saving heals it."),
            _RELEASE,
        ),
        "lock-conflicts",
    ),
    Cause(
        "browser-crash",
        "A holder's browser is gone and left its lock behind",
        ("lock-conflicts",),
        _browser_crash,
        (_FORCE,),
        "lock-conflicts",
    ),
    Cause(
        "token-mismatch",
        "A client shows a token that is not its lock's",
        ("lock-conflicts", "finalization-failing"),
        _token_mismatch,
        (Remedy("korrigo logs grep {copy} --level WARNING",
                "An old tab, or a second one: the marker reloads the page and locks again; nothing is lost."),),
        "lock-conflicts",
    ),
    Cause(
        "concurrent-finalize",
        "A copy was finalised twice at once; the second was refused",
        ("lock-conflicts", "finalization-failing"),
        _concurrent_finalize,
        (Remedy("korrigo logs grep {copy}", "Nothing to do: the first one counts. Often a double click or two tabs."),),
        "lock-conflicts",
    ),
    Cause(
        "contested-copy",
        "Several people want the same copies",
        ("lock-conflicts",),
        _contested_copy,
        (Remedy("korrigo logs grep {copy} --level WARNING", "Give the markers different copies (assignment)."),),
        "lock-conflicts",
    ),
)  # fmt: skip
