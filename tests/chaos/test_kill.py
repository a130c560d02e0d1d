"""Nothing is lost: copies go from upload to GRADED while processes are killed by a seedable schedule.

A checker outside the product then compares the clients' ledger with the system. CI: 40 copies, 32 faults;
`KORRIGO_TEST_SOAK=1` (make soak): 2 000 copies, 500 faults. `KORRIGO_CHAOS_SEED=N` replays a schedule.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.checker import check
from harness.client import TERMINAL_COPY, TERMINAL_SCAN, Client, Json, Refused
from harness.faults import Chaos, schedule
from harness.instance import Embedded, Instance
from harness.ledger import Ledger
from harness.pdfs import Label, a3_booklets, a4_booklets, a4_scan
from harness.production import Production
from harness.servers import S3, Postgres, RabbitMQ
from harness.story import Marker
from korrigo.drills.patience import crowding

IS_SOAK = os.environ.get("KORRIGO_TEST_SOAK") == "1"
COPIES, FAULTS = (2000, 500) if IS_SOAK else (40, 32)
SEED = int(os.environ.get("KORRIGO_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
MARKERS = 3
STALL_SECONDS = 60
DRAIN_SECONDS = 1800 if IS_SOAK else 180
PAUSE = (4.0, 11.0) if IS_SOAK else (3.0, 8.0)
PATIENCE_SECONDS = 90
QUESTIONS = {"q1": 8.0, "q2": 12.0}


@dataclass(frozen=True)
class Plan:
    """One upload: the file, its exam's kind, and how many copies it makes."""

    kind: str
    path: Path
    pages: int
    copies: int


KINDS: dict[str, tuple[str, int]] = {"whole": ("A4_single", 0), "chunks": ("A4_single", 2), "folded": ("A3_to_A4", 4)}


def plans(folder: Path, copies: int, choose: random.Random) -> list[Plan]:
    """Make files for exactly so many copies: single ones, booklets of two pages, folded sheets."""
    made: list[Plan] = []
    left, number = copies, 0
    while left:
        number += 1
        kind = ("whole", "chunks", "folded")[number % 3]
        size = 1 if kind == "whole" else min(left, choose.choice((2, 3)))
        path = folder / f"{number}.pdf"
        if kind == "whole":
            pages = choose.choice((1, 2, 4))
            a4_scan(path, [Label(number & 255, number >> 8, page + 1) for page in range(pages)])
        elif kind == "chunks":
            pages = 2 * size
            a4_booklets(path, document=number & 255, booklets=size, pages=2, first=1 + 4 * (number >> 8))
        else:
            pages = 2 * size
            a3_booklets(path, document=number & 255, booklets=size, first=1 + 4 * (number >> 8))
        made.append(Plan(kind, path, pages, size))
        left -= size
    return made


class Work:
    """The clients: one uploader, several markers, one watcher, all of them patient."""

    def __init__(self, instance: Instance, uploads: list[Plan], chaos: Chaos, faults: int) -> None:
        self.instance, self.uploads, self.chaos, self.faults = instance, uploads, chaos, faults
        self.ledger = Ledger()
        self.over = threading.Event()
        self.failures: list[str] = []
        self.to_mark: queue.Queue[str] = queue.Queue()
        self.expected = sum(plan.copies for plan in uploads)
        self._exams: dict[str, Json] = {}
        with self.client() as admin:
            for kind, (mode, size) in KINDS.items():
                self._exams[kind] = admin.create_exam(kind, mode=mode, pages_per_booklet=size, questions=QUESTIONS)

    def client(self) -> Client:
        """Log in with the patience of a good client."""
        made = Client(self.instance.url, patience_seconds=PATIENCE_SECONDS)
        return made.login("admin", self.instance.admin_password)

    def thread(self, name: str, body: Callable[[], None]) -> threading.Thread:
        """Start a thread whose failure ends the test with its traceback."""

        def run() -> None:
            try:
                body()
            except BaseException:
                self.failures.append(f"{name}: {traceback.format_exc()}")
                self.over.set()

        made = threading.Thread(target=run, name=name, daemon=True)
        made.start()
        return made

    def upload_all(self) -> None:
        """Upload in step with the faults, so that there is work until the last of them."""
        with self.client() as client:
            for number, plan in enumerate(self.uploads):
                while sum(self.chaos.done.values()) < number * (self.faults - 1) / max(1, len(self.uploads) - 1):
                    if self.over.wait(0.2):
                        return
                exam_id = self._exams[plan.kind]["id"]
                answer = client.upload(exam_id, plan.path)
                self.ledger.uploaded(
                    answer, exam_id, plan.path, pages=plan.pages, copies=plan.copies, is_a3=plan.kind == "folded"
                )

    def watch(self) -> None:
        """See what moves: scans end, copies become READY (then they are marked) and GRADED."""
        scans: set[str] = set()
        waiting: dict[str, str] = {}
        graded = 0
        with self.client() as client:
            while graded < self.expected and not self.over.wait(0.5):
                for upload in list(self.ledger.uploads):
                    if upload.scan_id in scans:
                        continue
                    scan = client.scan(upload.scan_id)
                    if scan["state"] in TERMINAL_SCAN:
                        scans.add(upload.scan_id)
                        waiting |= dict.fromkeys(scan["copy_ids"], "")
                        self.ledger.touch()
                graded += sum(self._follow(client, waiting, copy_id) for copy_id in list(waiting))
        while sum(self.chaos.done.values()) < self.faults and not self.over.wait(0.5):
            self.ledger.touch()  # everything is graded: what remains of the schedule hits idle parts
        self.over.set()

    def _follow(self, client: Client, waiting: dict[str, str], copy_id: str) -> bool:
        try:
            copy = client.copy(copy_id)
        except Refused as refused:
            # Staged, and grading's worker was killed before it heard of it (contract.md); the guard bounds this.
            if refused.status != 404:
                raise
            return False
        if copy["status"] != waiting[copy_id]:
            self.ledger.touch()
            if copy["status"] == "READY" and waiting[copy_id] in ("", "STAGING"):
                self.to_mark.put(copy_id)
            waiting[copy_id] = copy["status"]
        if copy["status"] in TERMINAL_COPY:
            del waiting[copy_id]
            self.ledger.graded(copy)
            return True
        return False

    def mark(self, seed: int) -> None:
        """Mark copies as they become READY."""
        with self.client() as client:
            marker = Marker(client, self.ledger, random.Random(seed))
            while not self.over.is_set():
                try:
                    copy_id = self.to_mark.get(timeout=0.5)
                except queue.Empty:
                    continue
                marker.mark(client.copy(copy_id), QUESTIONS)

    def guard(self) -> None:
        """No silent stall: something visible moves at least every 60 s while work remains."""
        while not self.over.wait(1):
            # uploads are spread over the whole schedule, so something is always due within the minute; a machine
            # with more runnable processes than two for each core starts every process that much later
            if self.ledger.silence() > STALL_SECONDS * crowding():
                raise AssertionError(f"nothing moved for {self.ledger.silence():.0f} s\n{self.picture()}")

    def picture(self) -> str:
        """Describe where everything stands, for a failed run."""
        entries = list(self.ledger.copies.values())
        marked = sum(entry.is_finalize_acked for entry in entries)
        graded = sum(entry.graded is not None for entry in entries)
        return (
            f"seed {SEED}: {len(self.ledger.uploads)}/{len(self.uploads)} uploads, {marked} finalised, "
            f"{graded}/{self.expected} graded, faults {dict(self.chaos.done)}\n" + "\n".join(self.chaos.log[-12:])
        )


def run(instance: Instance, folder: Path, chaos: Chaos, copies: int, faults: int) -> None:
    """Let the clients work under the schedule, wait for the end, compare."""
    print(f"\nKORRIGO_CHAOS_SEED={SEED} ({instance.mode}: {copies} copies, {faults} faults)", flush=True)
    began = time.monotonic()
    work = Work(instance, plans(folder, copies, random.Random(SEED)), chaos, faults)
    threads = [work.thread("uploader", work.upload_all), work.thread("watcher", work.watch)]
    threads += [work.thread(f"marker-{n}", lambda n=n: work.mark(SEED + n)) for n in range(MARKERS)]  # type: ignore[misc]
    threads.append(work.thread("guard", work.guard))
    chaos.run(work.over.wait)
    deadline = time.monotonic() + DRAIN_SECONDS
    work.over.wait(DRAIN_SECONDS)
    for thread in threads:
        thread.join(max(1.0, min(PATIENCE_SECONDS, deadline - time.monotonic())))
    assert not work.failures, "\n".join([*work.failures, work.picture()])
    assert time.monotonic() < deadline + PATIENCE_SECONDS and work.over.is_set(), work.picture()
    assert sum(chaos.done.values()) == faults, work.picture()
    assert all(count >= 2 for victim, count in chaos.done.items() if victim != "wipe_broker"), work.picture()
    instance.wait_ready(60)
    with work.client() as client:
        wrong = check(work.ledger, client, instance, expected_copies=copies)
    print(
        f"{instance.mode}: {time.monotonic() - began:.0f} s, drained {time.monotonic() - chaos.finished_at:.0f} s "
        f"after the last fault, longest silence {work.ledger.longest_silence:.0f} s, faults {dict(chaos.done)}",
        flush=True,
    )
    assert wrong == [], "\n".join([*wrong, work.picture()])


@pytest.fixture
def embedded() -> Iterator[Instance]:
    with Embedded() as running:
        yield running


@pytest.fixture
def split_production(own_postgres: Postgres, own_rabbitmq: RabbitMQ, s3_server: S3) -> Iterator[Production]:
    with Production(own_postgres, own_rabbitmq, s3_server, split=True) as running:
        assert isinstance(running, Production)
        yield running


@pytest.mark.timeout(7200 if IS_SOAK else 900)
def test_nothing_is_lost_embedded(embedded: Instance, tmp_path: Path) -> None:
    victims = ["api", "worker", "pool_child", "relay", "sweeper", "postgres"]
    plan = schedule(SEED, victims, faults=FAULTS, pause=PAUSE)
    run(embedded, tmp_path, Chaos(embedded, SEED, plan, {}), COPIES, FAULTS)


@pytest.mark.timeout(7200 if IS_SOAK else 900)
def test_nothing_is_lost_on_rabbitmq(split_production: Production, tmp_path: Path) -> None:
    victims = ["api", "worker", "pool_child", "relay", "sweeper", "postgres", "rabbitmq"]
    plan = schedule(SEED, victims, faults=FAULTS, pause=PAUSE)
    servers = {"postgres": split_production.postgres.restart, "rabbitmq": split_production.rabbitmq.restart}
    run(split_production, tmp_path, Chaos(split_production, SEED, plan, servers), COPIES, FAULTS)
