"""`korrigo cleanup_orphaned_files`: stored content that no room names goes to the trash."""

from __future__ import annotations

from typing import Annotated

import typer

from korrigo.operating import ActAs, AsJson, DryRun, Progress, operation, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def cleanup_orphaned_files(
    force: Annotated[bool, typer.Option("--force", help="even when it is more than 2 % of what is stored")] = False,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Move to the trash what no room named at two looks, a day apart; it is kept there for 30 days.

    Run it daily. A room that does not answer stops it. Example: korrigo cleanup_orphaned_files --dry-run
    """
    progress = Progress()
    with operation("ingest", act_as=act_as) as at:
        from korrigo_ingest.flows import orphans

        swept = orphans.sweep(
            at["ingest"], is_dry_run=dry_run, is_forced=force, actor_id=at.actor_id, progress=progress
        )
    progress.end()
    word = "would remove" if dry_run else "removed"
    count = len(swept.due) if dry_run else swept.removed_count
    tell(
        as_json,
        {
            "dry_run": dry_run,
            "removed_count": swept.removed_count,
            "due": len(swept.due),
            "seen": swept.seen,
            "unnamed": swept.unnamed,
            "restored_count": swept.restored_count,
            "emptied_count": swept.emptied_count,
        },
        f"{swept.seen} looked at, {swept.unnamed} named by no room; {word} {count}",
    )
