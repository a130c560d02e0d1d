"""`korrigo unlock_expired_copies`: what the sweeper does every ten seconds, now."""

from __future__ import annotations

import typer

from korrigo.operating import AsJson, DryRun, operation, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def unlock_expired_copies(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """End every lock whose lease is over; live ones stay. Example: korrigo unlock_expired_copies --dry-run"""
    with operation("grading") as at:
        from korrigo_grading.flows import locking

        found = locking.ended(at["grading"])
        done = len(found)
        if not dry_run:
            done = 0
            while swept := locking.sweep(at["grading"]):
                done += swept
    word = "would unlock" if dry_run else "unlocked"
    tell(as_json, {"dry_run": dry_run, "unlocked": done, "copies": found}, f"{word} {done} copies")
