"""`korrigo read-only on|off`: no changes over HTTP while something is being looked at, restored or upgraded."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from korrigo import installation
from korrigo.operating import ActAs, DryRun, operation

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class State(StrEnum):
    """The two positions."""

    ON = "on"
    OFF = "off"


@app.command()
def read_only(
    state: Annotated[State | None, typer.Argument(help="on or off; without it, tell")] = None,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Refuse changes with 503 READ_ONLY, or allow them again, within a second. Example: korrigo read-only on

    Reading, logging in and the heartbeats of locks go on; jobs that were accepted are finished.
    """
    from korrigo import rooms
    from korrigo.switches import owner_database, tell, turn
    from korrigo_kit.outbox import SYSTEM_ACTOR
    from korrigo_kit.switches import READ_ONLY

    installation.attach()
    actor_id = SYSTEM_ACTOR
    if act_as is not None:
        with operation("grading", act_as=act_as) as at:
            actor_id = at.actor_id
    database = owner_database(rooms.load_settings())
    try:
        with database.transaction() as tx:
            row = tx.one("SELECT value FROM switches WHERE name = %s FOR UPDATE", (READ_ONLY,))
            is_on = bool(row and row["value"])
            wanted = is_on if state is None else state is State.ON
            if wanted != is_on and not dry_run:
                turn(tx, READ_ONLY, int(wanted))
                tell(tx, "READ_ONLY", {"is_on": wanted}, actor_id)
    finally:
        database.close()
    is_now, changes = (is_on if dry_run else wanted), wanted != is_on
    if as_json:
        found = {"read_only": is_now, "changed": changes and not dry_run}
        typer.echo(json.dumps(found | ({"dry_run": True, "would_change": changes} if dry_run else {})))
        return
    typer.echo("read-only: changes are refused" if is_now else "changes are allowed")
    if dry_run:
        typer.echo(("would refuse them" if wanted else "would allow them") if changes else "would change nothing")
