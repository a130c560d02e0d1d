"""`korrigo queue status`: what waits, where, and whether somebody works on it."""

from __future__ import annotations

from typing import Any

import typer

from korrigo.operating import AsJson, Operation, operation, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def queue() -> None:
    """Look at the queues; the rows are the jobs, the broker only rings. Example: korrigo queue status"""


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the broker's messages, the jobs and the unsent events of every room. Example: korrigo queue status"""
    from korrigo.rooms import NAMES
    from korrigo_kit import queues

    with operation(*NAMES) as at:
        names = [f"{kind}.{room}" for room in NAMES for kind in ("jobs", "events")]
        lengths = queues.lengths(at["ingest"].settings, names)
        rooms = {name: _room(at, name) for name in NAMES}
    messages = None
    if lengths is not None:
        messages = {name: {state: n for (queue, state), n in lengths.items() if queue == name} for name in names}
    tell(as_json, {"broker_up": messages is not None, "messages": messages, "rooms": rooms}, *_lines(messages, rooms))


def _room(at: Operation, name: str) -> dict[str, Any]:
    from korrigo_kit import jobs

    database = at[name].db
    with database.transaction() as tx:
        unsent = tx.row(
            "SELECT count(*) AS events, coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8"
            " AS seconds FROM outbox WHERE sent_at IS NULL"
        )
        beats = tx.all(
            "SELECT name, extract(epoch FROM clock_timestamp() - beat_at)::float8 AS seconds FROM heartbeats"
            " WHERE beat_at > clock_timestamp() - interval '1 day' AND name NOT LIKE 'figures:%' ORDER BY name"
        )
    return {
        "jobs": jobs.counts(database),
        "oldest_due_seconds": round(jobs.oldest_due_seconds(database), 1),
        "unsent_events": unsent["events"],
        "oldest_unsent_seconds": round(unsent["seconds"], 1),
        "beats": {row["name"]: round(row["seconds"], 1) for row in beats},
    }


def _lines(messages: dict[str, dict[str, int]] | None, rooms: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["the broker does not answer"] if messages is None else []
    for name, states in (messages or {}).items():
        if any(states.values()):
            lines.append(f"{name:16} " + ", ".join(f"{count} {state}" for state, count in states.items()))
    if messages is not None and not lines:
        lines.append("no message waits in the broker")
    for name, room in rooms.items():
        jobs = "; ".join(
            f"{kind} " + ", ".join(f"{count} {state}" for state, count in states.items())
            for kind, states in room["jobs"].items()
        )
        lines.append(f"{name:8} jobs: {jobs or 'none'}; oldest due {room['oldest_due_seconds']:.0f} s")
        lines.append(f"{'':8} unsent events: {room['unsent_events']}, oldest {room['oldest_unsent_seconds']:.0f} s")
        beats = ", ".join(f"{part} {seconds:.0f} s ago" for part, seconds in room["beats"].items())
        lines.append(f"{'':8} last signs: {beats or 'none'}")
    return lines
