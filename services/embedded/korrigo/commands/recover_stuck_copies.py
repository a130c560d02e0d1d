"""`korrigo recover_stuck_copies`: copies that stand still go on, by the flow of the room that owns the cause.

    STAGING               no pages: its import failed -> tried again; it waits -> rung again
                          anomalies, or nobody validated it: a person's matter, told and left
    LOCKED                lease over or row gone -> unlocked; holder silent -> unlocked by force, with a reason
                          holder works: left
    GRADING_IN_PROGRESS   lost between the rooms -> what was missed is fetched; the rendering waits -> rung again

Nothing is deleted, no status is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from korrigo.operating import ActAs, AsJson, DryRun, Operation, operation, tell
from korrigo_kit.errors import KorrigoError

if TYPE_CHECKING:
    from korrigo_grading.flows.recovering import Stuck
    from korrigo_ingest.flows.retrying import Import

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_REASON = "recover_stuck_copies"
LEFT = "left to a person"


@app.command()
def recover_stuck_copies(
    staging_threshold: Annotated[float, typer.Option(help="minutes in STAGING", min=0)] = 60,
    locked_threshold: Annotated[float, typer.Option(help="minutes in LOCKED", min=0)] = 120,
    in_progress_threshold: Annotated[float, typer.Option(help="minutes in GRADING_IN_PROGRESS", min=0)] = 5,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Make copies go on that have not moved for long. Example: korrigo recover_stuck_copies --dry-run"""
    from korrigo.rooms import NAMES

    with operation(*NAMES, act_as=act_as) as at:
        from korrigo_grading.flows.recovering import Thresholds, stuck

        found = stuck(at["grading"], Thresholds(staging_threshold, locked_threshold, in_progress_threshold))
        healer = _Healer(at, is_dry_run=dry_run)
        items = [asdict(item) | {"done": healer.heal(item)} for item in found]
    healed = sum(item["done"] not in (LEFT, "in use") for item in items)
    word = "would act on" if dry_run else "acted on"
    lines = [
        f"{item['copy_id']}  {item['status']:19} {item['reason']:16} {item['minutes']:>6} min  {item['done']}"
        for item in items
    ]
    tell(
        as_json,
        {"dry_run": dry_run, "recovered": healed, "items": items},
        *lines,
        f"{len(items)} copies stand still; {word} {healed}",
    )


class _Healer:
    def __init__(self, at: Operation, *, is_dry_run: bool) -> None:
        self._at = at
        self._is_dry_run = is_dry_run
        self._imports: dict[str, str] = {}
        self._has_caught_up = False

    def heal(self, item: Stuck) -> str:
        """Do what the reason asks for and say what was done; a refusal is told and stops nothing."""
        acts: dict[str, Callable[[Stuck], str]] = {
            "NO_PAGES": self._import,
            "LOCK_EXPIRED": self._sweep,
            "LOCK_LOST": self._sweep,
            "HOLDER_SILENT": self._force,
            "NOT_RENDERED": self._render,
        }
        if item.reason not in acts:
            return "in use" if item.reason == "IN_USE" else LEFT
        try:
            return acts[item.reason](item)
        except KorrigoError as error:
            return f"not now: {error.message} ({error.reason})"

    def _import(self, item: Stuck) -> str:
        from korrigo_ingest.flows import retrying

        room = self._at["ingest"]
        scan = retrying.of_copies(room, [item.copy_id]).get(item.copy_id)
        if scan is None:
            return LEFT
        if scan.id not in self._imports:
            self._imports[scan.id] = self._import_of(scan)
        return self._imports[scan.id]

    def _import_of(self, scan: Import) -> str:
        from korrigo_ingest.flows import retrying

        room, actor_id = self._at["ingest"], self._at.actor_id
        if scan.may_be_retried:
            if not self._is_dry_run:
                retrying.retry(room, scan.id, actor_id)
            return "import tried again"
        if scan.job_state == "READY":
            if not self._is_dry_run:
                retrying.ring(room, scan.id, actor_id)
            return "import rung again"
        if scan.job_state == "RUNNING":
            return "in use"
        return self._catch_up() if scan.state in ("DONE", "NEEDS_REVIEW") else LEFT

    def _sweep(self, _: Stuck) -> str:
        from korrigo_grading.flows import locking

        if not self._is_dry_run:
            locking.sweep(self._at["grading"])
        return "unlocked"

    def _force(self, item: Stuck) -> str:
        from korrigo_grading.flows import locking

        if not self._is_dry_run:
            locking.force(self._at["grading"], self._at.principal, item.copy_id, _REASON)
        return "unlocked, its holder was silent"

    def _render(self, item: Stuck) -> str:
        from korrigo_render.flows.waking import wake

        answers = {"RUNG": "rendering rung again", "RUNNING": "in use"}
        room, actor_id = self._at["render"], self._at.actor_id
        found = wake(room, item.copy_id, item.revision, actor_id, is_dry_run=self._is_dry_run)
        if found in answers:
            return answers[found]
        # The request, or its answer, was lost between the rooms.
        done = self._catch_up()
        if found == "NOT_ASKED" and not self._is_dry_run:
            wake(room, item.copy_id, item.revision, actor_id)
        return done

    def _catch_up(self) -> str:
        if not self._is_dry_run and not self._has_caught_up:
            self._has_caught_up = True
            catch_up(self._at)
        return "missed events fetched"


def catch_up(at: Operation) -> dict[str, Any]:
    """Let every room fetch what it missed of the others, from the first event that is kept on."""
    from korrigo_kit import inbox

    fetched: dict[str, Any] = {}
    for name, room in at.rooms.items():
        for subscription in room.room.subscriptions(room):
            with room.db.transaction() as tx:
                inbox.forget_looks(tx, subscription.source, ())
            fetched[f"{name} of {subscription.source}"] = inbox.catch_up(room.db, subscription, room.channels)
    return fetched
