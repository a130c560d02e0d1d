"""`korrigo sessions clear`: everybody, or one account, has to log in again."""

from __future__ import annotations

from typing import Annotated

import typer

from korrigo.operating import ActAs, AsJson, DryRun, operation, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def sessions() -> None:
    """End sessions before their time. Example: korrigo sessions clear"""


@app.command()
def clear(
    user: Annotated[str | None, typer.Option(help="only this account")] = None,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """End the sessions of everybody, in every room within a second. Example: korrigo sessions clear --user zoe"""
    with operation("grading", act_as=act_as) as at:
        from korrigo_grading.flows import accounts
        from korrigo_grading.flows import sessions as flow

        grading = at["grading"]
        wanted = accounts.by_name(grading, user).id if user else None
        found = [one for one in flow.logged_in(grading) if wanted in (None, one.user_id)]
        ended = sum(one.sessions for one in found)
        if not dry_run:
            ended = sum(flow.clear(grading, one.user_id, at.actor_id) for one in found)
    done = "would end" if dry_run else "ended"
    tell(
        as_json,
        {"dry_run": dry_run, "sessions": ended, "accounts": [one.username for one in found]},
        f"{done} {ended} sessions of {len(found)} accounts",
    )
