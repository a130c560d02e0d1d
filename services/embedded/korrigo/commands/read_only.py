"""`korrigo read-only on|off`: no changes over HTTP while something is being looked at, restored or upgraded."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from korrigo import installation

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class State(StrEnum):
    """The two positions."""

    ON = "on"
    OFF = "off"


@app.command()
def read_only(
    state: Annotated[State | None, typer.Argument(help="on or off; without it, tell")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Refuse changes with 503 READ_ONLY, or allow them again, within a second. Example: korrigo read-only on

    Reading, logging in and the heartbeats of locks go on; jobs that were accepted are finished.
    """
    from korrigo import rooms
    from korrigo.switches import owner_database, tell, turn
    from korrigo_kit.switches import READ_ONLY

    installation.attach()
    database = owner_database(rooms.load_settings())
    try:
        with database.transaction() as tx:
            row = tx.one("SELECT value FROM switches WHERE name = %s FOR UPDATE", (READ_ONLY,))
            is_on = bool(row and row["value"])
            wanted = is_on if state is None else state is State.ON
            if wanted != is_on:
                turn(tx, READ_ONLY, int(wanted))
                tell(tx, "READ_ONLY", {"is_on": wanted})
    finally:
        database.close()
    text = "read-only: changes are refused" if wanted else "changes are allowed"
    typer.echo(json.dumps({"read_only": wanted, "changed": wanted != is_on}) if as_json else text)
