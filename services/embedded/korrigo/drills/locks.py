"""Causes of lock conflicts (playbook, scenario 3)."""

from __future__ import annotations

import time

from korrigo.drills.drill import LOCKS, Drill


class _Conflicts(Drill):
    """A page that goes on saving although its lock is not what it thinks."""

    scenario = "lock-conflicts"
    expects = ("LockConflictsHigh",)
    needs = frozenset({LOCKS})
    pressure = 1

    def prepare(self) -> None:
        self.copy_id = self.stage.copy()
        self.marker = self.stage.markers[0]
        self.token = self.marker.lock(self.copy_id)

    def press(self, number: int) -> None:
        self.marker.annotate(self.copy_id, self.token)
        # More than 10 in 5 minutes are more than 10 in 15 seconds (drills.rules).
        time.sleep(0.5)

    def is_healed(self) -> bool:
        return bool(self.marker.annotate(self.copy_id, self.token).is_success)


class TokenMismatch(_Conflicts):
    """A page that was open since yesterday sends the token that it had then."""

    cause = "token-mismatch"
    what = "a page goes on saving under a token that was replaced"

    def inject(self) -> None:
        self._right, self.token = self.token, "a-token-of-yesterday"

    def remedy(self) -> None:
        # Reloading the page gives it the token of its lock.
        self.token = self._right


DRILLS = (TokenMismatch,)
