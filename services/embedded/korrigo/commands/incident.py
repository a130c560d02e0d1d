"""`korrigo incident`: begin one from an alert, keep its evidence, close it with what was learnt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from korrigo.home import Home
from korrigo.incidents.book import Book
from korrigo.operating import ActAs, AsJson, DryRun, Operation, Progress, moment, operation, seconds, tell
from korrigo_kit.errors import Invalid, KorrigoError, NotFound, StateConflict
from korrigo_kit.incidents import levels, words
from korrigo_kit.incidents.record import Entry, Incident

if TYPE_CHECKING:
    from korrigo.incidents.evidence import Snapshot
    from korrigo_grading.models.alerts import Group

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
Which = Annotated[str, typer.Argument(help="id of `incident list`, or latest")]
Text = Annotated[str | None, typer.Option(help="one line")]
ReadIn = Annotated[str | None, typer.Option("--lang", help="en or fr; default: the report's own language")]
Lang = Annotated[str | None, typer.Option(help="language of the report: en or fr; default: that of your locale")]
_ROOMS = ("ingest", "grading", "render", "audit")
_DAY = timedelta(days=1)


@app.callback()
def incident() -> None:
    """Write down what happened, and keep the evidence. Example: korrigo incident new"""


@app.command()
def new(
    alert: Annotated[str | None, typer.Option(help="name of an alert, such as ImportStuck")] = None,
    group: Annotated[UUID | None, typer.Option(help="id of a group of GET /api/ops/alerts")] = None,
    title: Annotated[str | None, typer.Option(help="what it is about; default: the alert's name")] = None,
    since: Annotated[str | None, typer.Option(help="when it began, 30m or an ISO time; default: the alert's")] = None,
    priority: Annotated[str | None, typer.Option(help="P0 to P3; default: the alert's, else P2")] = None,
    lang: Lang = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Begin an incident: from the newest alert that fires, from a named one, or without any.

    Its timeline comes from alerts, the audit trail and the commands of this machine. The same alerts twice are one
    incident. Works while the database is away. Example: korrigo incident new --alert ImportStuck
    """
    if priority is not None and priority not in levels.PRIORITIES:
        raise Invalid("UNKNOWN_NAME", f"{priority} is none of {', '.join(levels.PRIORITIES)}")
    home, now = Home.locate(), datetime.now(UTC)
    book = Book(home)
    with _rooms() as at:
        chosen = _chosen(at, alert, str(group) if group else None)
        known = next((one for one in book.all() if chosen is not None and one.group_id == chosen.id), None)
        found = known or _begun(book, chosen, title or alert, moment(since) if since else None, priority, now)
        found.language = _language(lang, found.language if known else _spoken())
        _refresh(home, at, found, now)
    if not dry_run:
        book.write(found, now)
    word = "would begin" if dry_run else "goes on" if known else "begun"
    _tell(as_json, book, found, now, f"{word}: {found.id}", dry_run=dry_run)


@app.command("list")
def list_incidents(
    is_open: Annotated[bool, typer.Option("--open", help="only those that nobody has closed")] = False,
    as_json: AsJson = False,
) -> None:
    """List the incidents, newest first. Example: korrigo incident list --open"""
    book, now = Book(Home.locate()), datetime.now(UTC)
    found = [one for one in book.all() if one.is_open or not is_open]
    lines = [
        f"{one.id:60} {one.priority} N{one.level(now)} {'open  ' if one.is_open else 'closed'}"
        f" {one.lasted_seconds(now) / 60:6.0f} min  {one.title}"
        for one in found
    ]
    items = [{key: value for key, value in one.fields(now).items() if key != "timeline"} for one in found]
    tell(as_json, {"items": items}, *(lines or [f"no incident in {book.folder}"]))


@app.command()
def show(which: Which = "latest", lang: ReadIn = None, as_json: AsJson = False) -> None:
    """Show an incident with what is known of it now. Example: korrigo incident show latest --lang fr"""
    from korrigo_kit.incidents import report

    home, now = Home.locate(), datetime.now(UTC)
    book = Book(home)
    found = book.find(which)
    language = _language(lang, found.language)
    if found.is_open:
        with _rooms() as at:
            _refresh(home, at, found, now)
        book.write(found, now)
    if as_json:
        tell(True, found.fields(now))
        return
    typer.echo(report.markdown(found, now, language))


@app.command()
def close(
    which: Which = "latest",
    cause: Text = None,
    action: Annotated[list[str] | None, typer.Option(help="what remains to be done (repeatable)")] = None,
    lesson: Annotated[list[str] | None, typer.Option(help="what was learnt (repeatable)")] = None,
    impact: Text = None,
    lang: ReadIn = None,
    force: Annotated[bool, typer.Option("--force", help="although its alert fires, or cannot be asked")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Close an incident with its cause and what was learnt; what is written stays in the report.

    Example: korrigo incident close latest --cause "the disk was full" --lesson "watch the disk of the backups"
    """
    home, now = Home.locate(), datetime.now(UTC)
    book = Book(home)
    found = book.find(which)
    if not found.is_open:
        raise StateConflict("INCIDENT_CLOSED", f"{found.id} is closed already")
    found.language = _language(lang, found.language)
    if cause:
        # The moment at which it was found out, for the report's third line.
        found.timeline.append(Entry(_iso(now), "note", f"cause: {cause}"))
    with _rooms() as at:
        group = _refresh(home, at, found, now)
    if found.group_id and not force and (group is None or group.ended_at is None):
        raise StateConflict("ALERT_STILL_FIRING", "its alert fires, or cannot be asked: heal it first, or say --force")
    found.cause, found.impact = cause or found.cause, impact or found.impact
    found.actions += action or []
    found.lessons += lesson or []
    found.closed_at = _iso(now)
    found.ended_at = found.ended_at or _iso(now)
    is_written = True if dry_run else book.write(found, now)
    text = f"{'would close' if dry_run else 'closed'}: {found.id}"
    if not is_written:
        text += "; the report was edited by hand and is left as it is"
    _tell(as_json, book, found, now, text, dry_run=dry_run)


@app.command()
def snapshot(
    to: Annotated[Path | None, typer.Option(help="file; default: one in $KORRIGO_HOME/incidents/snapshots")] = None,
    since: Annotated[str, typer.Option(help="how far back logs, alerts and acts go")] = "24h",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Keep the evidence of this moment as one file: logs, metrics, doctor, stuck work, versions, alerts, acts.

    Secrets and names are cut out, so that it may be sent to who helps. Example: korrigo incident snapshot --since 2h
    """
    span = seconds(since)
    if dry_run:
        tell(as_json, {"dry_run": True, "since_seconds": span}, f"would keep the evidence of the last {span:.0f} s")
        return
    home = Home.locate()
    made = _snapshot(home, to, span / 3600)
    _attach_evidence(home, made)
    fields = {**asdict(made), "dry_run": False, "path": str(made.path)}
    tell(as_json, fields, *_of_snapshot(made))


@app.command()
def isolate(
    is_end: Annotated[bool, typer.Option("--end", help="allow changes again")] = False,
    no_evidence: Annotated[bool, typer.Option("--no-evidence", help="do not wait for a snapshot")] = False,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Keep the evidence, then refuse every change and end every session, until `--end`. It may be repeated.

    Example: korrigo incident isolate --dry-run
    """
    from korrigo.incidents import isolation

    home = Home.locate()
    with operation("grading", act_as=act_as) as at:
        grading = at["grading"]
        before = isolation.look(grading.settings, grading)
        if is_end:
            was = before.was_read_only if dry_run else isolation.end(grading.settings)
            text = "changes are allowed" if not dry_run else f"would allow changes (read-only now: {was})"
            tell(as_json, {"dry_run": dry_run, "is_end": True, "was_read_only": was}, text)
            return
        if dry_run:
            fields = {"dry_run": True, "is_end": False, "evidence": None, **asdict(before)}
            ended = f"end {before.sessions} sessions of {before.people} people"
            tell(as_json, fields, f"would keep the evidence, refuse changes and {ended}")
            return
        made = None if no_evidence else _snapshot(home, None, 24)
        done = isolation.begin(grading.settings, grading, made.sha256 if made else "", at.actor_id)
    if made is not None:
        _attach_evidence(home, made)
    fields = {"dry_run": False, "is_end": False, "evidence": str(made.path) if made else None, **asdict(done)}
    lines = _of_snapshot(made) if made else ["no evidence was kept"]
    ended = f"read-only: changes are refused; ended {done.sessions} sessions of {done.people} people"
    tell(as_json, fields, *lines, ended, "afterwards: korrigo incident isolate --end")


def _language(chosen: str | None, otherwise: str) -> str:
    if chosen is not None and chosen not in words.LANGUAGES:
        raise Invalid("UNKNOWN_NAME", f"{chosen} is none of {', '.join(words.LANGUAGES)}")
    return chosen or otherwise


def _spoken() -> str:
    """Return the language of whoever gives the command, by the variables that every program goes by."""
    given = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return words.language_of(next((locale for locale in given if locale), ""))


@contextmanager
def _rooms() -> Iterator[Operation | None]:
    """Give the rooms, or None when there is no way to them: an incident begins all the same."""
    from korrigo_kit.settings import SettingsError

    try:
        rooms = operation(*_ROOMS)
        at = rooms.__enter__()
    except (KorrigoError, SettingsError) as error:
        typer.echo(f"the rooms cannot be asked: {error}", err=True)
        yield None
        return
    try:
        yield at
    finally:
        rooms.__exit__(None, None, None)


def _chosen(at: Operation | None, alert: str | None, group_id: str | None) -> Group | None:
    from korrigo_grading.flows import alerting

    if at is None:
        return None
    try:
        found = alerting.choose(at["grading"], group_id=group_id, alertname=alert)
    except KorrigoError as error:
        typer.echo(f"the alerts cannot be asked: {error.message}", err=True)
        return None
    if found is None and (alert or group_id):
        raise NotFound("ALERT_NOT_FOUND", f"the product never heard of {alert or group_id}")
    if found is not None and alert and found.ended_at and found.ended_at < datetime.now(UTC) - _DAY:
        raise NotFound("ALERT_NOT_FOUND", f"{alert} ended more than a day ago; name it by --group {found.id}")
    return found


def _begun(
    book: Book, group: Group | None, title: str | None, since: datetime | None, priority: str | None, now: datetime
) -> Incident:
    labels = dict(group.alerts[0].labels) if group and group.alerts else {}
    annotations = dict(group.alerts[0].annotations) if group and group.alerts else {}
    # An incident is as bad as the worst of its alerts.
    told = sorted(one.labels.get("priority", "P3") for one in group.alerts) if group else []
    severities = {one.labels.get("severity") for one in group.alerts} if group else set()
    alertname = labels.get("alertname")
    started_at = since or (group.started_at if group else now)
    chosen = priority or next((one for one in told if one in levels.PRIORITIES), "P2")
    is_critical = "critical" in severities or (not group and chosen in ("P0", "P1"))
    summary = f"{alertname}: {annotations['summary']}" if annotations.get("summary") else alertname
    return Incident(
        id=book.name(started_at, title or alertname or "incident"),
        title=(title if title != alertname else None) or summary or "Incident",
        priority=chosen,
        severity="critical" if is_critical else "warning",
        created_at=_iso(now),
        started_at=_iso(started_at),
        group_id=group.id if group else None,
        alertname=alertname,
        scenario=labels.get("scenario"),
        runbook_url=annotations.get("runbook_url"),
    )


def _refresh(home: Home, at: Operation | None, found: Incident, now: datetime) -> Group | None:
    """Bring the timeline up to now; what a person noted stays."""
    from korrigo.incidents import timeline

    started = datetime.fromisoformat(found.started_at)
    end = datetime.fromisoformat(found.ended_at) if found.ended_at else now
    seen = timeline.look(home, at, found.group_id, started, end)
    notes = [entry for entry in found.timeline if entry.kind == "note"]
    if seen.unasked and not seen.entries:
        seen.entries = [entry for entry in found.timeline if entry.kind != "note"]
    found.timeline = sorted([*seen.entries, *notes], key=lambda entry: entry.at)
    found.unasked = seen.unasked
    # The most that stood still at once: a report that is written after the healing tells it too.
    if sum(seen.stuck_copies.values()) >= sum(found.stuck_copies.values()):
        found.stuck_copies = seen.stuck_copies
    if seen.group is not None:
        # It may have fired on after it seemed over.
        found.ended_at = _iso(seen.group.ended_at) if seen.group.ended_at else None
    return seen.group


def _snapshot(home: Home, to: Path | None, hours: float) -> Snapshot:
    from korrigo import installation, rooms
    from korrigo.incidents import evidence

    if installation.is_embedded(os.environ):
        installation.attach()
    progress = Progress()
    made = evidence.take(home, rooms.load_settings(), to=to.absolute() if to else None, hours=hours, say=progress)
    progress.end()
    return made


def _attach_evidence(home: Home, made: Snapshot) -> None:
    """Name the bundle in the newest open incident, if there is one."""
    book, now = Book(home), datetime.now(UTC)
    found = next((one for one in book.all() if one.is_open), None)
    if found is not None:
        book.write(replace(found, snapshots=[*found.snapshots, f"{made.path} (SHA-256 {made.sha256})"]), now)


def _of_snapshot(made: Snapshot) -> list[str]:
    lines = [f"{made.path}  {made.size / 1e6:.1f} MB, SHA-256 {made.sha256}"]
    lines += [f"missing: {name} ({why})" for name, why in made.missing.items()]
    if not made.knows_names:
        lines.append("the names of the instance could not be asked: look through it before you send it")
    return lines


def _tell(as_json: bool, book: Book, found: Incident, now: datetime, text: str, *, dry_run: bool) -> None:
    level = found.level(now)
    fields = {**found.fields(now), "dry_run": dry_run, "report": str(book.report_file(found))}
    lines = [text, f"{found.priority}, level {level} ({words.LANGUAGES[words.DEFAULT].levels[level]})"]
    lines += [f"not asked: {what}" for what in found.unasked]
    if not dry_run:
        lines.append(str(book.report_file(found)))
    tell(as_json, fields, *lines)


def _iso(moment_: datetime) -> str:
    return moment_.astimezone(UTC).isoformat(timespec="milliseconds")
