"""Every drill, in the order in which they are told; the longest come first where the order is free."""

from __future__ import annotations

from collections.abc import Sequence

from korrigo.drills import finalising, healing, imports, latency, locks, monitoring, outages, trail
from korrigo.drills.drill import Drill
from korrigo_kit.errors import Invalid

ALL: tuple[type[Drill], ...] = (
    *healing.DRILLS, *locks.DRILLS, *imports.DRILLS, *finalising.DRILLS, *trail.DRILLS, *latency.DRILLS,
    *outages.DRILLS, *monitoring.DRILLS,
)  # fmt: skip


def chosen(names: Sequence[str]) -> list[type[Drill]]:
    """Return the drills of these names, all when none is given; raises Invalid UNKNOWN_NAME."""
    known = {kind.title(): kind for kind in ALL}
    for name in names:
        if name not in known:
            raise Invalid("UNKNOWN_NAME", f"{name} is none of {', '.join(known)}")
    return [kind for title, kind in known.items() if not names or title in names]
