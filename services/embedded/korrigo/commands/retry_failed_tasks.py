"""`korrigo retry_failed_tasks`: imports and final PDFs that failed for good are tried again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from korrigo import installation
from korrigo.operating import EXIT_FOUND_PROBLEMS, ActAs, AsJson, DryRun, Operation, moment, operation, tell
from korrigo_kit.errors import KorrigoError

app = typer.Typer(add_completion=False, rich_markup_mode=None)
KINDS = ("import", "finalize")


@app.command()
def retry_failed_tasks(
    kind: Annotated[list[str] | None, typer.Option(help="import or finalize (repeatable); default: both")] = None,
    since: Annotated[str | None, typer.Option(help="only what failed since then: 24h, 7d or an ISO time")] = None,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Try again what failed, with fresh counters; documents that were refused stay refused.

    Exit code 9 when something could not be tried again. Example: korrigo retry_failed_tasks --kind import --since 24h
    """
    installation.check_words(kind or [], KINDS)
    with operation("ingest", "grading", act_as=act_as) as at:
        found = [
            *(_imports(at, since, dry_run) if not kind or "import" in kind else ()),
            *(_finals(at, since, dry_run) if not kind or "finalize" in kind else ()),
        ]
    refused = [item for item in found if item["refused"]]
    word = "would retry" if dry_run else "retried"
    lines = [f"{item['kind']} {item['id']}: {item['refused'] or word}" for item in found]
    tell(
        as_json,
        {"dry_run": dry_run, "retried": len(found) - len(refused), "items": found},
        *lines,
        f"{word} {len(found) - len(refused)}",
    )
    if refused:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _imports(at: Operation, since: str | None, dry_run: bool) -> list[dict[str, Any]]:
    from korrigo_ingest.flows import retrying

    room = at["ingest"]
    found = []
    for scan in retrying.failed(room, moment(since) if since else None):
        refused = None if dry_run else _refusal(partial(retrying.retry, room, scan.id, at.actor_id))
        found.append({"kind": "import", "id": scan.id, "reason": scan.error_reason, "refused": refused})
    return found


def _finals(at: Operation, since: str | None, dry_run: bool) -> list[dict[str, Any]]:
    from korrigo_grading.flows import finalize, recovering

    room = at["grading"]
    found = []
    for copy_id in recovering.failed(room, moment(since) if since else None):
        act = partial(finalize.retry, room, at.principal, copy_id, lambda tx, done: None)
        refused = None if dry_run else _refusal(act)
        found.append({"kind": "finalize", "id": copy_id, "reason": None, "refused": refused})
    return found


def _refusal(act: Callable[[], object]) -> str | None:
    """Do it; one that cannot be done must not stop the others."""
    try:
        act()
    except KorrigoError as error:
        return f"{error.message} ({error.reason})"
    return None
