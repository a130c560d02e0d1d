"""`korrigo cleanup_temp_files`: leftovers of crashes in the temporary folder and the spool."""

from __future__ import annotations

from typing import Annotated

import typer

from korrigo.operating import ActAs, AsJson, DryRun, operation, seconds, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def cleanup_temp_files(
    older_than: Annotated[str, typer.Option(help="only what nobody has touched for so long")] = "24h",
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Remove temporary files and uploads that were never finished. Example: korrigo cleanup_temp_files --dry-run"""
    with operation("ingest", act_as=act_as) as at:
        from korrigo_ingest.flows import clearing

        cleared = clearing.clear(
            at["ingest"], is_dry_run=dry_run, older_than_seconds=seconds(older_than), actor_id=at.actor_id
        )
    word = "would remove" if dry_run else "removed"
    tell(
        as_json,
        {"dry_run": dry_run, "removed_count": len(cleared.paths), "bytes": cleared.bytes, "paths": cleared.paths},
        *(f"  {path}" for path in cleared.paths),
        f"{word} {len(cleared.paths)} files and folders, {cleared.bytes >> 20} MB",
    )
