"""What policies are told, and what they answer: plain values, the same in a cluster and on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

# Words of the rooms (korrigo_kit.stuck); a test holds them together.
STAGES = ("import", "finalize", "lock")
LOST_TASK = "lost_task"
WORKER_DEAD = "worker_dead"
NO_PROGRESS = "no_progress"
RETRIES_EXHAUSTED = "retries_exhausted"
LOCK_EXPIRED = "lock_expired"

OBSERVE = "Observe"
SUGGEST = "Suggest"
AUTO = "Auto"

# An event is told within a second (contract.md). Where one waits for a minute nothing can be told, nor rung for.
DRAINED_SECONDS = 60.0

# What is decided about one thing.
ACT = "Act"
WAIT = "Wait"
ASK = "Ask"
LOOK = "Look"


@dataclass(frozen=True, slots=True)
class Found:
    """Something that a room says is stuck; `tried` automatic acts on it in the last day, the last at `tried_at`."""

    room: str
    stage: str
    reason: str
    kind: str
    id: str
    since: datetime
    copies: int = 1
    job_id: str = ""
    attempts: int = 0
    lost_leases: int = 0
    error_reason: str = ""
    exam_id: str = ""
    anonymous_id: str = ""
    tried: int = 0
    tried_at: datetime | None = None
    is_paused: bool = False
    # Events wait: the broker is away, or whoever tells it.
    is_cut_off: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is, whichever room tells it and why: stage, kind and id."""
        return self.stage, self.kind, self.id


@dataclass(frozen=True, slots=True)
class Acts:
    """Automatic acts of the last hour, in all rooms: how many, the last that failed in a row, and when one did.

    Of the last day: when something was healed last, and how many subjects were acted on again a moment ago, whether
    they count as stuck meanwhile or not.
    """

    last_hour: int = 0
    failures: int = 0
    failed_at: datetime | None = None
    acted_at: datetime | None = None
    unproven: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """The policy in plain numbers; times in seconds. The defaults are those of `korrigo up`."""

    mode: str = AUTO
    actions: Sequence[str] = ("RetryImport", "RetryFinalize", "ReleaseExpiredLocks", "VerifyAudit")
    per_sweep: int = 20
    per_hour: int = 200
    per_subject: int = 3
    cool_down_seconds: float = 60.0
    breaker_failures: int = 5
    breaker_cool_down_seconds: float = 600.0
    exhausted_after_seconds: float = 900.0
    stuck_after_seconds: Mapping[str, float] = field(
        default_factory=lambda: {"import": 60.0, "finalize": 60.0, "lock": 60.0}
    )
    most: int = 200
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one thing: verdict, a CamelCase reason, one sentence for people, and what helps."""

    verdict: str
    reason: str
    message: str
    action: str = ""
