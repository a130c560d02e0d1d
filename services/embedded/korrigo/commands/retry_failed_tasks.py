"""`korrigo retry_failed_tasks`: imports and final PDFs that failed for good are tried again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
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
    reason: Annotated[
        list[str] | None, typer.Option(help="only what failed for this reason, as --dry-run shows it (repeatable)")
    ] = None,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Try again what failed, with fresh counters; documents that were refused stay refused.

    Exit code 9 when something could not be tried again. Example: korrigo retry_failed_tasks --kind import --since 24h
    """
    installation.check_words(kind or [], KINDS)
    chosen = _Chosen(moment(since) if since else None, frozenset(code.upper() for code in reason or ()), dry_run)
    with operation("ingest", "grading", act_as=act_as) as at:
        found = [
            *(_imports(at, chosen) if not kind or "import" in kind else ()),
            *(_finals(at, chosen) if not kind or "finalize" in kind else ()),
        ]
    refused = [item for item in found if item["refused"]]
    word = "would retry" if dry_run else "retried"
    lines = [f"{item['kind']} {item['id']} {item['reason'] or '-'}: {item['refused'] or word}" for item in found]
    tell(
        as_json,
        {"dry_run": dry_run, "retried": len(found) - len(refused), "items": found},
        *lines,
        f"{word} {len(found) - len(refused)}",
    )
    if refused:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which failures are meant, and whether they are only told."""

    since: datetime | None
    reasons: frozenset[str]
    is_dry: bool

    def has(self, reason: str | None) -> bool:
        return not self.reasons or reason in self.reasons


def _imports(at: Operation, chosen: _Chosen) -> list[dict[str, Any]]:
    from korrigo_ingest.flows import retrying

    room = at["ingest"]
    found = []
    for scan in retrying.failed(room, chosen.since):
        if not chosen.has(scan.error_reason):
            continue
        refused = None if chosen.is_dry else _refusal(partial(retrying.retry, room, scan.id, at.actor_id))
        found.append({"kind": "import", "id": scan.id, "reason": scan.error_reason, "refused": refused})
    return found


def _finals(at: Operation, chosen: _Chosen) -> list[dict[str, Any]]:
    from korrigo_grading.flows import finalize, recovering

    room = at["grading"]
    found = []
    for copy in recovering.failed(room, chosen.since):
        if not chosen.has(copy.reason):
            continue
        act = partial(finalize.retry, room, at.principal, copy.copy_id, lambda tx, done: None)
        refused = None if chosen.is_dry else _refusal(act)
        found.append({"kind": "finalize", "id": copy.copy_id, "reason": copy.reason, "refused": refused})
    return found


def _refusal(act: Callable[[], object]) -> str | None:
    """Do it; one that cannot be done must not stop the others."""
    try:
        act()
    except KorrigoError as error:
        return f"{error.message} ({error.reason})"
    return None
