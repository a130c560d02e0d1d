"""`korrigo force_unlock_copy`: end the lock of one copy, whoever holds it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from korrigo.operating import ActAs, AsJson, DryRun, operation, tell
from korrigo_kit.errors import NotFound

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def force_unlock_copy(
    copy: Annotated[UUID, typer.Argument(help="id of the copy")],
    reason: Annotated[str, typer.Option(help="why; kept apart from the audit trail, which holds a commitment to it")],
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """End a lock whoever holds it; what its holder wrote stays.

    Example: korrigo force_unlock_copy 0197… --reason "marker is ill"
    """
    copy_id = str(copy)
    with operation("grading", act_as=act_as) as at:
        from korrigo_grading.flows import locking

        lock = locking.status(at["grading"], at.principal, copy_id)
        if dry_run and lock is None:
            raise NotFound("LOCK_MISSING", "nobody holds the lock of this copy")
        if not dry_run:
            locking.force(at["grading"], at.principal, copy_id, reason)
    holder = lock.owner_name if lock else "nobody"
    word = "would unlock" if dry_run else "unlocked"
    tell(as_json, {"dry_run": dry_run, "copy_id": copy_id, "holder": holder}, f"{word} {copy_id}, held by {holder}")
