"""`korrigo audit verify|export|backfill`: is the memory whole, take it out, tell what was never told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any
from uuid import UUID

import typer

from korrigo import installation
from korrigo.operating import AsJson, DryRun, Progress, moment, operation, tell
from korrigo_kit.errors import StateConflict, Unavailable

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
EXIT_FOUND_PROBLEMS = 9


@app.callback()
def audit() -> None:
    """Verify the audit trail, take it out, tell what was never told. Example: korrigo audit verify"""


@app.command()
def verify(
    copy: Annotated[str | None, typer.Option(help="only this copy")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Check sequences, hashes and last numbers; exit code 9 when something is wrong. Example: korrigo audit verify"""
    from korrigo.runtimes import runtime
    from korrigo_audit.flows import verification

    installation.attach()
    with runtime("audit") as room:
        verdict = verification.verify(room, ("copy", copy) if copy else None)
    if as_json:
        typer.echo(json.dumps(asdict(verdict) | {"is_valid": verdict.is_valid}))
    else:
        typer.echo(f"{verdict.records} records in {verdict.streams} streams")
        for finding in verdict.findings:
            where = f"{finding.subject_type} {finding.subject_id}, {finding.source} {finding.source_seq}"
            typer.echo(f"{finding.code}: {where}")
        for name in verdict.unreachable:
            typer.echo(f"unchecked: {name} did not tell its last numbers")
        if verdict.is_valid:
            typer.echo("valid")
    if not verdict.is_valid:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


@app.command("export")
def export_trail(
    copy: Annotated[UUID | None, typer.Option(help="only this copy")] = None,
    since: Annotated[str | None, typer.Option(help="24h, 7d or an ISO time; default: everything")] = None,
    until: Annotated[str | None, typer.Option(help="the same; default: now")] = None,
    out: Annotated[Path | None, typer.Option(help="file to write (0600); default: standard output")] = None,
    as_json: AsJson = False,
) -> None:
    """Write records with their leaves, a JSON object a line, so that hashes and numbers can be checked elsewhere.

    SHA-256 over the byte 0 and the leaf is its leaf_hash; source_seq has no gaps per stream and source. CSV for people:
    `korrigo export_audit_logs`. Example: korrigo audit export --out trail.jsonl
    """
    from korrigo_audit.flows import listing

    progress, count = Progress(), 0
    subjects = [("copy", str(copy))] if copy else None
    start, end = (moment(text) if text else None for text in (since, until))
    with operation("audit") as at, _opened(out) as file:
        for record in listing.whole(at["audit"].db, subjects=subjects, since=start, until=end):
            file.write(json.dumps(record, default=str) + "\n")
            count += 1
            if out is not None:
                progress("written", count)
    progress.end()
    if out is not None:
        tell(as_json, {"records": count, "out": str(out)}, f"{count} records in {out}")


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    """Give standard output, or a file that is there only when it is whole."""
    if out is None:
        yield sys.stdout
        return
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise Unavailable("EXPORT_NOT_WRITTEN", f"cannot write {out}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@app.command()
def backfill(
    copy: Annotated[UUID, typer.Argument(help="id of the copy")],
    action: Annotated[str, typer.Argument(help="IMPORT, VALIDATE, LOCK or FINALIZE")],
    reason: Annotated[str, typer.Option(help="why; kept apart from the audit trail, which holds a commitment to it")],
    act_as: Annotated[str, typer.Option("--as", help="admin in whose name it is told")],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Tell an act afterwards that a copy's status promises and nobody told; it says that it is backfilled.

    What a room wrote and audit missed is fetched first: then nothing is missing. Refused unless audit misses it.
    Example: korrigo audit backfill 0197… IMPORT --reason "lost with the old machine" --as admin
    """
    copy_id = str(copy)
    with operation("grading", "audit", act_as=act_as) as at:
        from korrigo_audit.flows import expecting
        from korrigo_grading.flows import backfilling

        installation.check_words([action], backfilling.ACTIONS)
        if not dry_run:
            _catch_up(at["audit"])
        status = backfilling.status_of(at["grading"], copy_id)
        missing = [name.split(" ")[0] for _, name in expecting.missing_acts(at["audit"].db, {copy_id: status})]
        if action not in missing:
            told = f"audit misses {', '.join(missing)}" if missing else "audit misses nothing"
            raise StateConflict("EVENT_NOT_MISSING", f"{action} of {copy_id} ({status}) is not missing; {told}")
        if not dry_run:
            backfilling.backfill(at["grading"], at.principal, copy_id, action, reason)
    word = "would tell" if dry_run else "told"
    fields = {"dry_run": dry_run, "copy_id": copy_id, "action": action, "status": status}
    tell(as_json, fields, f"{word} {action} of {copy_id} afterwards, marked as backfilled")


def _catch_up(audit_room: Any) -> None:
    from korrigo_kit import inbox

    for subscription in audit_room.room.subscriptions(audit_room):
        with audit_room.db.transaction() as tx:
            inbox.forget_looks(tx, subscription.source, ())
        inbox.catch_up(audit_room.db, subscription, audit_room.channels)
