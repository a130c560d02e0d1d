"""Causes of slow answers (playbook, scenario 4)."""

from __future__ import annotations

import threading
import time

from korrigo.drills.drill import EVERYTHING, FINALIZE, LATENCY, LOCKS, Drill
from korrigo_kit.errors import Bug

_WRITERS = 8


class _SlowWrites(Drill):
    """People who save remarks while the database is slow; each on a copy of their own."""

    scenario = "high-latency"
    needs = frozenset({LATENCY})
    pressure = _WRITERS
    stagger_seconds = 0.75

    def prepare(self) -> None:
        self._begun: set[int] = set()
        self.copies = [self.stage.copy() for _ in range(self.pressure)]
        self.tokens = [self.stage.admin.lock(copy_id) for copy_id in self.copies]

    def press(self, number: int) -> None:
        if number not in self._begun:
            # One after the other: at every moment some statement has run for long.
            self._begun.add(number)
            time.sleep(number * self.stagger_seconds)
        self.stage.admin.annotate(self.copies[number], self.tokens[number])

    def undo(self) -> None:
        self.mend()
        for copy_id, token in zip(self.copies, self.tokens, strict=False):
            self.stage.admin.unlock(copy_id, token)

    def is_healed(self) -> bool:
        began = time.monotonic()
        answer = self.stage.admin.annotate(self.copies[0], self.tokens[0])
        return bool(answer.is_success and time.monotonic() - began < 1.0)


class SlowQuery(_SlowWrites):
    """Every insert into a table takes six seconds, as without an index that it needs."""

    cause = "slow-query"
    what = "every remark that is saved takes the database six seconds"
    expects = ("DatabaseSlowQueries", "HighLatency")
    also = ("LatencyDegraded",)

    def inject(self) -> None:
        named = ", ".join(f"'{copy_id}'" for copy_id in self.copies)
        self.stage.scratch.sql(
            "CREATE FUNCTION grading.drill_slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(6); RETURN NEW; END $$;"
            " CREATE TRIGGER drill_slow BEFORE INSERT ON grading.annotations FOR EACH ROW"
            f" WHEN (NEW.copy_id IN ({named})) EXECUTE FUNCTION grading.drill_slow()"
        )

    def mend(self) -> None:
        self.stage.scratch.sql(
            "DROP TRIGGER IF EXISTS drill_slow ON grading.annotations; DROP FUNCTION IF EXISTS grading.drill_slow()"
        )


class LockContention(_SlowWrites):
    """Somebody opened a transaction by hand, locked a table, and went to lunch."""

    cause = "lock-contention"
    what = "a session holds a table's lock between two statements"
    expects = ("DatabaseBlockedQueries",)
    # Whoever gives up waiting is answered 503, and waits for up to three seconds before.
    also = ("ErrorRateHigh", "ErrorBudgetBurnFast", "ErrorBudgetBurnSlow", "DatabaseSlowQueries", "LatencyDegraded")
    # Nobody can mark meanwhile: whoever prepares a copy for a final PDF would be refused.
    needs = frozenset({LATENCY, LOCKS, FINALIZE})
    pages = ("database-blocked",)
    pressure = 2
    stagger_seconds = 1.5

    def inject(self) -> None:
        self._pid = 0
        self._ended = threading.Event()
        self._holder = threading.Thread(target=self._hold, daemon=True)
        self._holder.start()
        while not self._pid and not self._ended.is_set():
            time.sleep(0.05)
        if not self._pid:
            raise Bug("DRILL_NOT_INJECTED", "the table could not be locked")

    def _hold(self) -> None:
        import psycopg

        url = (self.stage.scratch.home.secrets / "database-url").read_text().strip()
        try:
            with psycopg.connect(url, application_name="psql") as connection:
                connection.execute("LOCK TABLE grading.annotations IN EXCLUSIVE MODE")
                self._pid = connection.info.backend_pid
                while not self._ended.wait(0.5) and not connection.closed:
                    connection.pgconn.consume_input()
                    if connection.pgconn.status != psycopg.pq.ConnStatus.OK:
                        return
        except psycopg.Error:  # ended by the remedy
            pass
        finally:
            self._ended.set()

    def environment(self) -> dict[str, str]:
        return {"HOLDER": str(self._pid)}

    def undo(self) -> None:
        self._ended.set()
        self._holder.join(10)
        super().undo()


class QueueBacklog(Drill):
    """Scans arrive faster than they are imported, because every page takes the database seconds."""

    cause = "queue-backlog"
    scenario = "high-latency"
    what = "scans arrive much faster than they are imported"
    expects = ("QueueBacklog",)
    also = ("ImportStuck", "DatabaseSlowQueries")
    needs = EVERYTHING
    pages = ("queue-backlog",)
    pressure = 1
    detect_seconds = 120.0
    heal_seconds = 120.0
    _SCANS = 70

    def prepare(self) -> None:
        self.exam_id = self.stage.admin.exam("Backlog", pages_per_copy=0)
        self._scans: list[str] = []

    def inject(self) -> None:
        self.stage.scratch.sql(
            "CREATE FUNCTION ingest.drill_slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(1.8); RETURN NEW; END $$;"
            " CREATE TRIGGER drill_slow BEFORE INSERT ON ingest.pages FOR EACH ROW EXECUTE FUNCTION ingest.drill_slow()"
        )
        for _ in range(self._SCANS):
            self._upload()

    def _upload(self) -> None:
        self._scans.append(self.stage.admin.uploaded(self.exam_id, self.stage.scan(2, "pile")))

    def press(self, number: int) -> None:
        self._upload()
        time.sleep(0.8)

    def mend(self) -> None:
        self.stage.scratch.sql(
            "DROP TRIGGER IF EXISTS drill_slow ON ingest.pages; DROP FUNCTION IF EXISTS ingest.drill_slow()"
        )

    def is_healed(self) -> bool:
        ((left,),) = self.stage.scratch.sql("SELECT count(*) FROM ingest.scans WHERE state IN ('RECEIVED', 'RUNNING')")
        return bool(left == 0)

    def undo(self) -> None:
        self.mend()


DRILLS = (SlowQuery, LockContention, QueueBacklog)
