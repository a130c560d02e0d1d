"""Acts that the audit trail lacks: on their way, never told, or removed (playbooks, scenario 5)."""

from __future__ import annotations

from korrigo.doctor.causes import LIKELY, POSSIBLE, SEEN, Cause, Found, Remedy, some, span
from korrigo.doctor.patient import Patient
from korrigo.rooms import NAMES

_UNDRAINED_SECONDS = 30
# Whole verification up to here (some seconds); beyond, what the sweeper found round by round.
_VERIFIED_RECORDS = 100_000
_ON_ITS_WAY_SECONDS = 30

_REMOVED = """
SELECT i.source, i.subject_type, i.subject_id, i.last_seq - coalesce(r.held, 0) AS missing FROM inbox i LEFT JOIN (
    SELECT source, subject_type, subject_id, count(*) AS held FROM records GROUP BY 1, 2, 3) r
    USING (source, subject_type, subject_id) WHERE i.kind = '' AND i.last_seq > coalesce(r.held, 0) LIMIT 50
"""
_REFUSED = "SELECT source, subject_type, subject_id, last_error FROM inbox WHERE last_error IS NOT NULL LIMIT 50"
_UNSENT = """
SELECT count(*) AS events, coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS oldest,
       (SELECT extract(epoch FROM clock_timestamp() - max(beat_at)) FROM heartbeats WHERE name = 'relay')::float8
           AS relay
FROM outbox WHERE sent_at IS NULL
"""


def _missing_event(patient: Patient) -> Found | None:
    from korrigo_audit.flows import completeness

    removed = patient.rows(_REMOVED, room="audit")
    evidence = [
        f"{row['subject_type']} {row['subject_id']}: {row['missing']} events of {row['source']} are gone"
        for row in removed
    ]
    refused = patient.rows(_REFUSED, room="audit")
    evidence += [
        f"{row['subject_type']} {row['subject_id']}: events of {row['source']} cannot be stored: {row['last_error']}"
        for row in refused
    ]
    audit = patient.room("audit")
    counted = patient.ask(lambda: completeness.missing(audit, _ON_ITS_WAY_SECONDS))
    if sum(counted.values()):
        evidence.append("missing by action: " + ", ".join(f"{name} {n}" for name, n in counted.items() if n))
    promised = _promised(patient)
    evidence += promised
    if not evidence:
        return None
    subject = next((row["subject_id"] for row in (*removed, *refused) if row["subject_type"] == "copy"), "COPY_ID")
    if subject == "COPY_ID" and promised:
        subject = promised[0].split()[1]
    return Found(SEEN + 0.05 if removed or refused or promised else LIKELY, tuple(evidence[:6]), {"copy": subject})


def _promised(patient: Patient) -> list[str]:
    """Compare statuses with the acts that must have led there; a copy that just moved may be ahead of its events."""
    from korrigo_audit.flows import expecting

    rows = patient.rows(
        "SELECT id::text AS id, status FROM copies WHERE deleted_at IS NULL"
        " AND updated_at < clock_timestamp() - interval '30 seconds' ORDER BY updated_at DESC LIMIT 5000",
        room="grading",
    )
    database = patient.room("audit").db
    statuses = {row["id"]: row["status"] for row in rows}
    lacking = patient.ask(lambda: expecting.missing_acts(database, statuses))
    return [f"copy {copy_id} is {statuses[copy_id]} without {action}" for copy_id, action in lacking]


def _audit_chain_broken(patient: Patient) -> Found | None:
    from korrigo_audit.domain.sequences import GAP
    from korrigo_audit.flows import chain, verification

    audit = patient.room("audit")
    is_valid = patient.ask(lambda: chain.is_valid(audit))
    count = patient.row("SELECT count(*) AS n FROM records", room="audit")["n"]
    if count > _VERIFIED_RECORDS:
        return None if is_valid else Found(SEEN, ("the sweeper's rounds found a changed or removed record",))
    findings = patient.ask(lambda: verification.verify_stored(audit.db)).findings
    if not findings:
        return None
    shown = [f"{at.code} in {at.subject_type} {at.subject_id}, {at.source} {at.source_seq}" for at in findings]
    changed = [item for item in findings if item.code != GAP]
    # A record that is merely gone is told again by its source; a changed one was touched by somebody.
    certainty = SEEN + 0.08 if changed else POSSIBLE
    return Found(certainty, (f"{len(findings)} findings", some(shown)), {"copy": findings[0].subject_id})


def _outbox_undrained(patient: Patient) -> Found | None:
    found = {room: patient.row(_UNSENT, room=room) for room in NAMES}
    late = {room: row for room, row in found.items() if row["oldest"] > _UNDRAINED_SECONDS}
    if not late:
        return None
    evidence = [
        f"{room}: {row['events']} events not sent, the first for {span(row['oldest'])}; its relay gave a sign "
        + ("never" if row["relay"] is None else f"{span(row['relay'])} ago")
        for room, row in late.items()
    ]
    if patient.is_up and not patient.is_child_well("relay"):
        evidence.append("the relay process of `korrigo up` is dead or stopped")
    values = {"room": next(iter(late)), "pid": str(patient.children.get("relay", "PID"))}
    return Found(SEEN + 0.03, tuple(evidence), values)


_VERIFY = Remedy("korrigo audit verify", "Check sequences, hashes and last numbers of the whole trail.")

CAUSES = (
    Cause(
        "outbox-undrained",
        "Events are written and not sent",
        ("missing-audit-events", "broker", "import-stuck", "finalization-failing"),
        _outbox_undrained,
        (
            Remedy("kill -KILL {pid}", "End a relay that hangs; `korrigo up` starts another at once.",
                   "ps -o pid,stat,etime,args -p {pid}", "embedded"),
            Remedy("korrigo run {room} --part relay", "Start a relay; two beside each other are safe.",
                   "korrigo queue status", "production"),
        ),
        "missing-audit-events",
    ),
    Cause(
        "missing-event",
        "The trail lacks events that were told",
        ("missing-audit-events",),
        _missing_event,
        (
            _VERIFY,
            Remedy("korrigo intervene RecreateAuditEvent copy/{copy} --reason 'event missing' --as ADMIN"
                   " --approved-by OTHER_ADMIN",
                   "Store the missing events again, byte for byte as their source still holds them.",
                   "korrigo intervene RecreateAuditEvent copy/{copy} --reason 'event missing' --dry-run"),
        ),
        "missing-audit-events",
    ),
    Cause(
        "audit-chain-broken",
        "A stored event was changed or removed",
        ("missing-audit-events",),
        _audit_chain_broken,
        (
            _VERIFY,
            Remedy("korrigo backup create", "Keep the evidence before anything else is done; then see the page."),
        ),
        "audit-chain",
    ),
)  # fmt: skip
