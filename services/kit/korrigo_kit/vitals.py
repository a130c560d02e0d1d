"""What a room's automatic healers did lately, and whether its events get out: the facts of whoever heals on.

Asked by `kit.operations` for the operator, and by the front door's healer. The acts are counted where they are kept, in
the room that did them: whoever heals remembers nothing, and two of them, or one that was killed, see the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from korrigo_kit.interventions import fingerprint
from korrigo_kit.outbox import OPERATOR_ACTOR

if TYPE_CHECKING:
    from korrigo_kit.db import Database, Tx
    from korrigo_kit.stuck import Stuck

# What is done about a stage by itself; all of it counts as a try.
_HEALING = {"import": ("RetryImport",), "finalize": ("RetryFinalize",), "lock": ("ReleaseExpiredLocks",)}
# What an act did not help is stuck again after this time (settings of jobs: 60 s), and was seen by a sweep since.
UNPROVEN_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a room is, by its own clock; `acts_failed` of the automatic acts of the last hour, since one succeeded.

    `acts_unproven`: subjects that were acted on again a moment ago. What is retried is not stuck meanwhile, so that
    whoever only looks at what is stuck would take it for healed.
    """

    now: datetime
    outbox_waiting: int
    outbox_oldest_seconds: float
    acts_last_hour: int
    acts_failed: int
    acts_failed_at: datetime | None
    acted_at: datetime | None = None
    acts_unproven: int = 0


_ACTS = """
WITH acts AS (
    SELECT created_at, state, state = 'FAILED' OR state = 'RUNNING' AND lease_until < clock_timestamp() AS is_failed
    FROM interventions WHERE actor_id = %(actor)s AND created_at > clock_timestamp() - interval '1 hour'
), good AS (SELECT coalesce(max(created_at), '-infinity') AS last_at FROM acts WHERE state = 'SUCCEEDED')
SELECT count(*) AS acts_last_hour, count(*) FILTER (WHERE is_failed AND created_at > last_at) AS acts_failed,
       max(created_at) FILTER (WHERE is_failed AND created_at > last_at) AS acts_failed_at
FROM acts, good
"""
_TRIED = """
WITH subjects AS (
    SELECT count(*) AS tried, max(created_at) AS tried_at FROM interventions
    WHERE actor_id = %(actor)s AND action = ANY(%(healing)s) AND created_at > clock_timestamp() - interval '1 day'
    GROUP BY fingerprint
)
SELECT max(tried_at) AS acted_at, count(*) FILTER (
    WHERE tried > 1 AND tried_at > clock_timestamp() - make_interval(secs => %(unproven)s)) AS acts_unproven
FROM subjects
"""


def vitals(database: Database) -> Vitals:
    """Look at the room's tables; costs three short statements."""
    healing = [action for actions in _HEALING.values() for action in actions]
    with database.transaction() as tx:
        acts = tx.row(_ACTS, {"actor": OPERATOR_ACTOR})
        tried = tx.row(_TRIED, {"actor": OPERATOR_ACTOR, "healing": healing, "unproven": UNPROVEN_SECONDS})
        waiting = tx.row(
            "SELECT clock_timestamp() AS now, count(*) AS outbox_waiting,"
            " coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS outbox_oldest_seconds"
            " FROM outbox WHERE sent_at IS NULL"
        )
    return Vitals(**waiting, **acts, **tried)


def with_tries(tx: Tx, found: Sequence[Stuck]) -> list[Stuck]:
    """Add to what is stuck how often the healers tried it in the last day, in this room."""
    wanted = {
        fingerprint(action, item.subject_type, item.subject_id): item
        for item in found
        for action in _HEALING.get(item.stage, ())
    }
    rows = tx.all(
        "SELECT fingerprint, count(*) AS tried, max(created_at) AS tried_at FROM interventions"
        " WHERE actor_id = %s AND created_at > clock_timestamp() - interval '1 day' AND fingerprint = ANY(%s)"
        " GROUP BY fingerprint",
        (OPERATOR_ACTOR, list(wanted)),
    )
    tried = {id(wanted[row["fingerprint"]]): row for row in rows}
    return [
        replace(item, tried=int(row["tried"]), tried_at=row["tried_at"]) if (row := tried.get(id(item))) else item
        for item in found
    ]
