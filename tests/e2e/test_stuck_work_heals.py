"""Nobody is called: what passes by itself is healed by the instance, what needs a person is left and said.

The instance heals by the operator's policies (korrigo.healing). What broke is real; only ages, and the word for what
made rendering fail, are put there by hand. `KORRIGO_TEST_SOAK=1` waits as long as a shipped instance does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.client import Client
from harness.instance import Embedded
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for
from harness.ready import ready_copy
from harness.scrapes import Scrape
from korrigo_kit.outbox import OPERATOR_ACTOR

IS_SOAK = os.environ.get("KORRIGO_TEST_SOAK") == "1"
SHIPPED = {"KORRIGO_JOBS__STUCK_SECONDS": "60", "KORRIGO_HEALING__SWEEP_SECONDS": "30"}
QUICK = {"KORRIGO_JOBS__STUCK_SECONDS": "5", "KORRIGO_HEALING__SWEEP_SECONDS": "2"}
# An alert waits five minutes: whatever is healed before has called nobody.
BEFORE_THE_ALERT_SECONDS = 300
LONG_AGO = "clock_timestamp() - interval '20 minutes'"


@pytest.fixture(scope="module")
def own_env() -> Mapping[str, str]:
    return {"KORRIGO_HTTP__METRICS_CACHE_SECONDS": "0.5"} | (SHIPPED if IS_SOAK else QUICK)


def acts(own: Embedded, room: str) -> list[tuple[str, str, str]]:
    """List what was done by itself in a room: act, who did it, on what."""
    rows = own.sql(f"SELECT action, actor_id::text, plan FROM {room}.interventions ORDER BY created_at")
    return [(action, actor, plan[0]["subject_id"]) for action, actor, plan in rows]


def test_stuck_imports_go_on_without_a_person(own: Embedded, boss: Client, tmp_path: Path) -> None:
    exam = boss.create_exam("Healing")
    scans = []
    with own.resting():
        for number in (1, 2):
            path = a4_scan(tmp_path / f"{number}.pdf", [Label(number, 1, 1)])
            scans.append(str(boss.upload(exam["id"], path)["scan_id"]))
        lost, late = scans
        # A job that somebody ended by hand; one whose machine was too busy three times, a while ago.
        own.sql("UPDATE ingest.jobs SET state = 'FAILED', finished_at = clock_timestamp() WHERE subject_id = %s", lost)
        own.sql("UPDATE ingest.jobs SET state = 'QUARANTINED', attempts = 3, error_reason = 'TIMEOUT', finished_at ="
            f" {LONG_AGO} WHERE subject_id = %s", late)  # fmt: skip
        own.sql(f"UPDATE ingest.scans SET state = 'FAILED', error_reason = 'TIMEOUT', finished_at = {LONG_AGO}"
            " WHERE id = %s", late)  # fmt: skip
    began = time.monotonic()

    def are_done() -> bool:
        return all(boss.scan(scan)["state"] == "DONE" for scan in scans)

    wait_for("both imports", are_done, seconds=BEFORE_THE_ALERT_SECONDS)
    print(f"healed {time.monotonic() - began:.1f} s after the workers were back")
    done = acts(own, "ingest")
    assert sorted(done) == sorted(("RetryImport", OPERATOR_ACTOR, scan) for scan in scans)
    told = own.sql("SELECT DISTINCT convert_from(leaf, 'UTF8')::jsonb->>'actor_id' FROM ingest.outbox"
               " WHERE action = 'INTERVENTION'")  # fmt: skip
    assert told == [(OPERATOR_ACTOR,)]


def test_a_final_pdf_that_may_succeed_is_made_and_one_that_cannot_is_left(
    own: Embedded, boss: Client, tmp_path: Path
) -> None:
    copies, sources = [], []
    for _ in range(2):
        copy_id = str(ready_copy(boss, tmp_path)["id"])
        ((sha256,),) = own.sql("SELECT source_sha256 FROM grading.copies WHERE id = %s", copy_id)
        path = own.home / "blobs" / "cas" / sha256[:2] / sha256
        path.rename(path.with_name("away"))
        sources.append((path.with_name("away"), path))
        lock = boss.lock(copy_id)
        boss.put_scores(lock, {"q1": 7.5, "q2": 9})
        boss.finalize(lock)
        boss.wait_copy(copy_id, ["GRADING_FAILED"])
        path.with_name("away").rename(path)
        copies.append(copy_id)
    passing, hopeless = copies
    # The store was away for longer than three attempts take, and is back; nobody says so of the other.
    own.sql("UPDATE grading.finalisations SET error_reason = 'OBJECT_STORE_UNAVAILABLE' WHERE copy_id = %s", passing)
    own.sql(f"UPDATE grading.copies SET updated_at = {LONG_AGO} WHERE id = ANY(%s::uuid[])", copies)
    began = time.monotonic()
    boss.wait_copy(passing, ["GRADED"], seconds=BEFORE_THE_ALERT_SECONDS)
    print(f"healed after {time.monotonic() - began:.1f} s")
    assert acts(own, "grading") == [("RetryFinalize", OPERATOR_ACTOR, passing)]

    def said() -> bool:
        lines = [line for line in own.log_lines() if line.get("copy_id") == hopeless]
        return any(line["logger"] == "korrigo.healing" and line["level"] == "WARNING" for line in lines)

    wait_for("a word on what needs a person", said, seconds=60)
    assert boss.copy(hopeless)["status"] == "GRADING_FAILED"
    page = Scrape(own.get("/metrics", timeout=20).text)
    assert page.get("grading_stuck_copies", stage="finalize", reason="retries_exhausted") == 1
    assert page.get("grading_operator_actions_total", action="RetryFinalize") == 1
    assert page.get("grading_interventions_total", result="failed") == 0
