"""What a drill is: a cause, how it is brought about, which alert must come of it, and how it is healed.

A subclass declares everything that is expected before the run, as class attributes; `drills.engine` calls its steps
in this order:

    prepare     what is needed beforehand (not timed)
    inject      the cause itself; from here on the clock of detection runs
    press       again and again, in `pressure` threads, for as long as the cause lasts (people who go on working)
    mend        what a person does outside the product, such as giving it a disk again
    (pages)     the Mitigation part of the runbook pages, as it stands
    remedy      what a person does then
    is_healed   looked at until it is true
    complaints  what was promised for the time of the cause and not kept
    undo        always, at the end, whatever happened
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from korrigo.drills.stage import Stage

# What a drill disturbs, or must have undisturbed: two drills that share a word never run at the same time.
IMPORT = "import"
FINALIZE = "finalize"
LOCKS = "locks"
LATENCY = "latency"
AUDIT = "audit"
SWEEPER = "sweeper"
EVERYTHING = frozenset({IMPORT, FINALIZE, LOCKS, LATENCY, AUDIT, SWEEPER})


class Drill(ABC):
    """One cause; see the module."""

    # The playbooks' name of the cause, as `korrigo doctor scenario` names it.
    cause: ClassVar[str]
    # Name of the drill, when it is not the cause's.
    name: ClassVar[str] = ""
    # What `korrigo doctor scenario` is asked.
    scenario: ClassVar[str]
    # One line for people.
    what: ClassVar[str]
    # Alerts that must reach the receiver. Empty = none: the sweeper or the supervisor heals it, in under a minute.
    expects: ClassVar[tuple[str, ...]] = ()
    # It is noticed when what it expects, the Watchdog, stays away: the alerting itself is broken.
    falls_silent: ClassVar[bool] = False
    # True consequences that may be told as well; anything else is a wrong alert and fails the drill.
    also: ClassVar[tuple[str, ...]] = ()
    # Words of this module: what it disturbs.
    needs: ClassVar[frozenset[str]] = EVERYTHING
    # Begins only when every other drill is over, alerts and incidents included.
    needs_silence: ClassVar[bool] = False
    # Runbook pages whose Mitigation part is run.
    pages: ClassVar[tuple[str, ...]] = ()
    # Threads that `press`.
    pressure: ClassVar[int] = 0
    # How long the cause lasts at least, also when it was noticed before.
    hold_seconds: ClassVar[float] = 0.0
    detect_seconds: ClassVar[float] = 90.0
    heal_seconds: ClassVar[float] = 60.0
    # Needs the volume in memory, which needs root.
    needs_volume: ClassVar[bool] = False

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @classmethod
    def title(cls) -> str:
        """Return the name that people give on the command line."""
        return cls.name or cls.cause

    @classmethod
    def signs(cls) -> tuple[str, ...]:
        """Say what must be noticed, for people."""
        return tuple(f"{name} stays away" if cls.falls_silent else name for name in cls.expects)

    def prepare(self) -> None:  # noqa: B027 - most drills need nothing beforehand
        """Make what the cause needs."""

    @abstractmethod
    def inject(self) -> None:
        """Bring the cause about."""

    def press(self, number: int) -> None:  # noqa: B027 - see `pressure`
        """Do what people go on doing; `number` tells the thread."""

    def mend(self) -> None:  # noqa: B027 - most causes are inside the product
        """Remove what the product cannot remove itself."""

    def environment(self) -> dict[str, str]:
        """Return what the pages' commands are told, such as COPY or SCAN."""
        return {}

    def remedy(self) -> None:  # noqa: B027 - what the pages say may be all
        """Do what a person does about it then."""

    @abstractmethod
    def is_healed(self) -> bool:
        """Tell whether everything that was asked for is done."""

    def complaints(self) -> Sequence[str]:
        """Return what was promised and not kept while the cause lasted; asked once it is healed."""
        return ()

    def undo(self) -> None:  # noqa: B027 - most remedies leave nothing behind
        """Take back what the drill changed, should it have ended early; harmless when nothing is left to take back."""
