"""Is the memory whole? Sequences, hashes and the last numbers that the rooms tell. CLI, gRPC and metric call this."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from korrigo_audit.domain.sequences import MISSING_TAIL, Finding, Record, check
from korrigo_kit.db import Database
from korrigo_kit.errors import KorrigoError
from korrigo_kit.room import Runtime

SOURCES = ("ingest", "grading", "render")
# An event younger than this may still be on its way (contract.md: events arrive within a second).
TAIL_GRACE_SECONDS = 5.0
MAX_FINDINGS = 100
_PAGE = 2000
_COLUMNS = (
    "subject_type, subject_id, source, source_seq, id::text AS id, action, actor_id, at, metadata, request_id, leaf,"
    " leaf_hash"
)


@dataclass
class Verdict:
    """What was looked at and what is wrong."""

    records: int = 0
    streams: int = 0
    findings: list[Finding] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        return not self.findings


def verify(rt: Runtime, subject: tuple[str, str] | None = None) -> Verdict:
    """Check one stream, or all; a room that does not answer is named in `unreachable`, its tail is unchecked."""
    verdict = verify_stored(rt.db, subject)
    verdict.findings.extend(_missing_tails(rt, subject, verdict))
    return verdict


def verify_stored(database: Database, subject: tuple[str, str] | None = None) -> Verdict:
    """Check what is stored and ask no room: sequences and hashes, without the last numbers (restored backups)."""
    verdict = Verdict()
    streams = set()

    def counted() -> Iterator[Record]:
        for record in _records(database, subject):
            verdict.records += 1
            streams.add((record.subject_type, record.subject_id))
            yield record

    for finding in check(counted()):
        if len(verdict.findings) < MAX_FINDINGS:
            verdict.findings.append(finding)
    verdict.streams = len(streams)
    return verdict


def _records(database: Database, subject: tuple[str, str] | None) -> Iterator[Record]:
    last = ("", "", "", 0)
    scope = "AND subject_type = %(type)s AND subject_id = %(id)s" if subject else ""
    while True:
        with database.transaction() as tx:
            rows = tx.all(
                f"SELECT {_COLUMNS} FROM records"
                " WHERE (subject_type, subject_id, source, source_seq) > (%(a)s, %(b)s, %(c)s, %(d)s)"
                f" {scope} ORDER BY subject_type, subject_id, source, source_seq LIMIT {_PAGE}",
                {
                    "a": last[0],
                    "b": last[1],
                    "c": last[2],
                    "d": last[3],
                    "type": subject[0] if subject else "",
                    "id": subject[1] if subject else "",
                },
            )
        for row in rows:
            yield Record(**{**row, "leaf": bytes(row["leaf"]), "leaf_hash": bytes(row["leaf_hash"])})
        if len(rows) < _PAGE:
            return
        last = (rows[-1]["subject_type"], rows[-1]["subject_id"], rows[-1]["source"], rows[-1]["source_seq"])


def _missing_tails(rt: Runtime, subject: tuple[str, str] | None, verdict: Verdict) -> list[Finding]:
    behind = _behind(rt, subject, verdict)
    ends_at = time.monotonic() + TAIL_GRACE_SECONDS
    while behind and time.monotonic() < ends_at:
        time.sleep(0.25)
        known = _last_numbers(rt.db, [finding.subject_id for finding in behind])
        behind = [
            finding
            for finding in behind
            if known.get((finding.subject_type, finding.subject_id, finding.source), 0) < finding.source_seq
        ]
    return behind[:MAX_FINDINGS]


def _behind(rt: Runtime, subject: tuple[str, str] | None, verdict: Verdict) -> list[Finding]:
    behind = []
    for source in SOURCES:
        page = ""
        while True:
            try:
                answer = rt.channels.heads(source, 0, page, ())
            except KorrigoError:
                verdict.unreachable.append(source)
                break
            known = _last_numbers(rt.db, [head.stream.subject_id for head in answer.heads])
            for head in answer.heads:
                stream = (head.stream.subject_type, head.stream.subject_id)
                if subject in (None, stream) and known.get((*stream, source), 0) < head.last_seq:
                    behind.append(Finding(MISSING_TAIL, *stream, source, head.last_seq))
            page = answer.next_page_token
            if not page:
                break
    return behind


def _last_numbers(database: Database, subject_ids: list[str]) -> dict[tuple[str, str, str], int]:
    with database.transaction() as tx:
        rows = tx.all(
            "SELECT subject_type, subject_id, source, max(source_seq) AS last_seq FROM records"
            " WHERE subject_id = ANY(%s) GROUP BY subject_type, subject_id, source",
            (subject_ids,),
        )
    return {(row["subject_type"], row["subject_id"], row["source"]): row["last_seq"] for row in rows}
