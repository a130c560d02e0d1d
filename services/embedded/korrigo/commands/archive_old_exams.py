"""`korrigo archive_old_exams`: exams of past years go into one verified file, and out of the product."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from korrigo.operating import ActAs, AsJson, DryRun, Progress, operation, seconds, tell
from korrigo_kit.errors import Invalid, StateConflict

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_DAY = 86400


@app.command()
def archive_old_exams(
    export: Annotated[Path, typer.Option(help="file to write, .tar.gz; best on another disk")],
    year: Annotated[int | None, typer.Option(help="exams of this year, which must be over", min=1990)] = None,
    older_than: Annotated[str, typer.Option(help="without --year: exams older than this")] = "365d",
    skip_unfinished: Annotated[bool, typer.Option("--skip-unfinished", help="leave out what is not graded")] = False,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Export old exams, verify the export, then destroy their scans, final PDFs, marks, texts and names of files.

    The audit trail stays, and a tombstone of every exam and copy. Cut short, the same command goes on. It cannot be
    undone but from a backup. Example: korrigo archive_old_exams --year=2025 --export=/mnt/archive/2025.tar.gz --dry-run
    """
    from korrigo.rooms import NAMES

    first, last = _days(year, older_than)
    path, progress = export.absolute(), Progress()
    with operation(*NAMES, act_as=act_as) as at:
        from korrigo.exam_archive import file, leaving

        is_resumed = path.exists()
        archive = file.verified(path) if is_resumed else None
        exams = leaving.finished(at, first, last, skip_unfinished=skip_unfinished)
        others = [exam for exam in exams if archive is not None and exam.id not in archive.exams]
        if others:
            raise StateConflict("EXPORT_EXISTS", f"{path} holds other exams and is never written over: name another")
        if dry_run or (archive is None and not exams):
            items = [{"id": exam.id, "name": exam.name, "copies": exam.copies} for exam in exams]
            nothing = {"dry_run": dry_run, "archived": 0, "export": None, "resumed": is_resumed, "items": items}
            lines = [f"{exam.id}  {exam.date}  {exam.copies:5} copies  {exam.name}" for exam in exams]
            word = "would archive" if dry_run else "nothing to archive:"
            tell(as_json, nothing, *lines, f"{word} {len(exams)} exams")
            return
        if archive is None:
            archive = leaving.export(at, exams, path, progress)
        done = leaving.destroy(at, archive, progress)
    progress.end()
    fields = {
        "dry_run": False,
        "archived": sum(one.is_new for one in done),
        "export": str(path),
        "sha256": archive.sha256,
        "resumed": is_resumed,
        "items": [
            {"id": one.id, "name": one.name, "copies": one.copies, "is_new": one.is_new, "destroyed": one.destroyed}
            for one in done
        ],
    }
    lines = [f"{one.id}  {one.copies:5} copies, {one.destroyed} files destroyed  {one.name}" for one in done]
    tell(as_json, fields, *lines, f"{len(done)} exams are in {path}, SHA-256 {archive.sha256}")


def _days(year: int | None, older_than: str) -> tuple[date, date]:
    today = datetime.now(UTC).date()
    if year is None:
        return date(1990, 1, 1), today - timedelta(days=seconds(older_than) / _DAY)
    if year >= today.year:
        raise Invalid("YEAR_NOT_OVER", f"{year} is not over")
    return date(year, 1, 1), date(year, 12, 31)
