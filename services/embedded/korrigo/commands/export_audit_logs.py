"""`korrigo export_audit_logs`: the acts of a time as CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from korrigo.operating import Progress, moment, operation

if TYPE_CHECKING:
    from korrigo_kit.db import Database

app = typer.Typer(add_completion=False, rich_markup_mode=None)
COLUMNS = (
    "timestamp", "action", "actor_id", "subject_type", "subject_id", "source", "source_seq", "seq", "request_id",
    "leaf_hash", "metadata",
)  # fmt: skip
_AT_ONCE = 1000


@app.command()
def export_audit_logs(
    since: Annotated[str, typer.Option(help="24h, 7d or an ISO time")] = "24h",
    action: Annotated[str | None, typer.Option(help="only this action, such as FINALIZE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line instead of CSV")] = False,
) -> None:
    """Write the audit trail to standard output, oldest first. Example: korrigo export_audit_logs --since=24h"""
    start, progress, count = moment(since), Progress(), 0
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    if not as_json:
        writer.writeheader()
    with operation("audit") as at:
        for record in records(at["audit"].db, start, action):
            if as_json:
                sys.stdout.write(json.dumps(record) + "\n")
            else:
                writer.writerow({**record, "metadata": json.dumps(record["metadata"], sort_keys=True)})
            count += 1
            if not sys.stdout.isatty():
                progress("written", count)
    progress.end()


def records(database: Database, since: datetime, action: str | None) -> Iterator[dict[str, Any]]:
    """Yield the acts since a moment, oldest first, page by page."""
    from korrigo_audit.flows import listing

    after: tuple[str, str] | None = None
    while True:
        rows = listing.of_all(database, since=since, action=action, after=after, limit=_AT_ONCE)
        for row in rows:
            yield {"timestamp": row["at"], **{name: row[name] for name in COLUMNS if name != "timestamp"}}
        if len(rows) < _AT_ONCE:
            return
        after = (rows[-1]["happened_at"].isoformat(), rows[-1]["id"])
