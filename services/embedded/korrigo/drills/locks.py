"""Causes of lock conflicts (playbook, scenario 3)."""

from __future__ import annotations

import time

from korrigo.drills.drill import FINALIZE, LOCKS, Drill


class _Conflicts(Drill):
    """A page that goes on although its lock is not what it thinks."""

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

    def undo(self) -> None:
        self.marker.unlock(self.copy_id, self.token)


class TokenMismatch(_Conflicts):
    """A page that was open since yesterday sends the token that it had then."""

    cause = "token-mismatch"
    what = "a page goes on saving under a token that was replaced"

    def inject(self) -> None:
        self._right, self.token = self.token, "a-token-of-yesterday"

    def press(self, number: int) -> None:
        super().press(number)
        # The other tab, which was opened today, is alive.
        self.marker.beat(self.copy_id, self._right)

    def remedy(self) -> None:
        # Reloading the page gives it the token of its lock.
        self.token = self._right


class HeartbeatLoss(_Conflicts):
    """A page whose heartbeats a proxy drops: it locks, works, loses the lease, saves, is refused, locks again."""

    cause = "heartbeat-loss"
    what = "a page's heartbeats do not arrive, and it saves after its lease has ended"

    def inject(self) -> None:
        self.marker.unlock(self.copy_id, self.token)

    def press(self, number: int) -> None:
        self.token = self.marker.lock(self.copy_id, ttl_seconds=1)
        time.sleep(1.05)
        for _ in range(4):
            self.marker.annotate(self.copy_id, self.token)
            time.sleep(0.2)

    def remedy(self) -> None:
        # Heartbeats arrive again: the lease lives as long as the page does.
        self.token = self.marker.lock(self.copy_id)


class ConcurrentFinalize(_Conflicts):
    """A script that does not wait for its answers asks for the same final PDF again and again."""

    cause = "concurrent-finalize"
    what = "a copy is finalised again and again by two clients at once"
    needs = frozenset({LOCKS, FINALIZE})
    pressure = 2

    def prepare(self) -> None:
        super().prepare()
        self.marker.score(self.copy_id, self.token)

    def inject(self) -> None:
        self.press(0)

    def press(self, number: int) -> None:
        self.marker.finalize(self.copy_id, self.token)
        time.sleep(0.7)

    def is_healed(self) -> bool:
        return self.stage.admin.status(self.copy_id) == "GRADED"

    def complaints(self) -> list[str]:
        sql = "SELECT count(*) FROM grading.finalisations WHERE copy_id = %s"
        ((made,),) = self.stage.scratch.sql(sql, self.copy_id)
        return [] if made == 1 else [f"the copy was finalised {made} times"]


class BrowserCrash(Drill):
    """A browser is gone with its lock, and a colleague needs the copy; the silence is put behind us by SQL."""

    cause = "browser-crash"
    scenario = "lock-conflicts"
    what = "a browser is gone with its lock, and a colleague keeps asking for the copy"
    expects = ("LockAlreadyLockedHigh",)
    needs = frozenset({LOCKS})
    pages = ("lock-conflicts",)
    pressure = 1

    def prepare(self) -> None:
        self.copy_id = self.stage.copy()
        # A lead marker's copy, so that it is assigned to nobody and the colleague may have it.
        self.stage.admin.lock(self.copy_id)

    def inject(self) -> None:
        self.stage.scratch.sql(
            "UPDATE grading.copy_locks SET heartbeat_at = heartbeat_at - interval '9 minutes',"
            " acquired_at = acquired_at - interval '10 minutes' WHERE copy_id = %s",
            self.copy_id,
        )

    def press(self, number: int) -> None:
        self.stage.markers[1].send("POST", f"/api/copies/{self.copy_id}/lock", json={})
        # More than 10 in an hour, which is 3 minutes here, and fewer than 10 in 5 minutes, which are 15 seconds.
        time.sleep(1.8)

    def environment(self) -> dict[str, str]:
        return {"COPY": self.copy_id, "REASON": "the browser is gone"}

    def is_healed(self) -> bool:
        answer = self.stage.markers[1].send("POST", f"/api/copies/{self.copy_id}/lock", json={})
        if answer.is_success:
            self.stage.markers[1].unlock(self.copy_id, answer.json()["token"])
        return bool(answer.is_success)


DRILLS = (BrowserCrash, HeartbeatLoss, TokenMismatch, ConcurrentFinalize)
