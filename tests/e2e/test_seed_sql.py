"""The playbooks' SQL, unchanged, as role korrigo_support on a running product: each answer is compared with the truth.

The truth comes from somewhere else: the product's API, the processes of the machine, or what the test itself did.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import psycopg
import pytest
import sqlalchemy

from harness.client import Client, Json, Lock
from harness.instance import Embedded
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for
from harness.ready import ready_copy
from harness.seed_sql import REPLACED, RUN, SEEDS, flat, found_in_seeds
from korrigo_kit.credentials import role_password
from korrigo_kit.db import with_user
from korrigo_kit.settings import load

ROLE = "korrigo_support"
Rows = list[dict[str, Any]]


@dataclass
class Stage:
    """A product with a graded, a failed, a held, an abandoned, a ready and two staged copies, one of them old."""

    own: Embedded
    boss: Client
    graded: str
    failed: str
    held: Lock
    expired: Lock
    ready: str
    old: str
    folder: Path

    @property
    def support_url(self) -> str:
        """Where the person at 03:00 logs in."""
        url = self.own.database_url()
        return with_user(url, ROLE, role_password(load([], {"KORRIGO_DATABASE__URL": url}).database, ROLE))

    def ask(self, name: str, copy_id: str = "", exam_id: str = "") -> Rows:
        """Run one statement of the playbooks as it stands; a DELETE answers [{"deleted": n}]."""
        statement = RUN[name].replace("<copy_uuid>", copy_id).replace("<exam_uuid>", exam_id)
        with psycopg.connect(self.support_url, row_factory=psycopg.rows.dict_row, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else [{"deleted": cursor.rowcount}]

    def exam_of(self, copy_id: str) -> str:
        """Tell the exam of a copy."""
        return str(self.boss.copy(copy_id)["exam_id"])

    def everything(self) -> Iterator[Json]:
        """Yield every copy of every exam, as the API lists them."""
        for exam in self.boss.items("/api/exams"):
            yield from self.boss.copies(exam["id"])

    def lock(self, copy_id: str) -> Json:
        """Return the lock of a copy as the API lists it."""
        return next(lock for lock in self.boss.items("/api/locks") if lock["copy_id"] == copy_id)


def _failed(own: Embedded, boss: Client, folder: Path) -> str:
    """Take a copy's content away before it is finalised, and bring it back."""
    copy_id = str(ready_copy(boss, folder)["id"])
    lock = boss.lock(copy_id)
    boss.put_scores(lock, {"q1": 1, "q2": 2})
    with psycopg.connect(own.database_url()) as connection:
        row = connection.execute("SELECT source_sha256 FROM grading.copies WHERE id = %s", (copy_id,)).fetchone()
    assert row is not None
    source = own.home / "blobs" / "cas" / row[0][:2] / row[0]
    away = source.rename(folder / "away")
    boss.finalize(lock)
    boss.wait_copy(copy_id, ["GRADING_FAILED"], seconds=90)
    away.rename(source)
    return copy_id


def _graded(boss: Client, folder: Path) -> str:
    copy_id = str(ready_copy(boss, folder)["id"])
    lock = boss.lock(copy_id)
    kept = [boss.annotate(lock, content=f"kept {n}") for n in range(3)]
    boss.delete_annotation(lock, kept[0])
    boss.put_scores(lock, {"q1": 3, "q2": 4})
    boss.finalize(lock)
    boss.wait_graded(copy_id)
    boss.wait_audit(copy_id, "FINALIZE")
    return copy_id


def _staged(boss: Client, folder: Path) -> str:
    exam = boss.create_exam("Staged", auto_validate=False)
    paths = [a4_scan(folder / f"staged-{number}.pdf", [Label(number, 1, 1)]) for number in (901, 902)]
    old, new = (boss.upload(exam["id"], path) for path in paths)
    boss.wait_scan(new["scan_id"])
    return str(boss.wait_scan(old["scan_id"])["copy_ids"][0])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Make one of each; the sweeper sleeps, so that an expired lock stays as it is."""
    folder = tmp_path_factory.mktemp("seed-sql")
    with Embedded() as own, Client(own.url, patience_seconds=20) as boss:
        assert isinstance(own, Embedded)
        boss.login("admin", own.admin_password)
        graded, failed, old = _graded(boss, folder), _failed(own, boss, folder), _staged(boss, folder)
        with psycopg.connect(own.database_url()) as connection:
            connection.execute(
                "UPDATE grading.copies SET created_at = created_at - interval '2 hours' WHERE id = %s", (old,)
            )
        copies = [str(ready_copy(boss, folder)["id"]) for _ in range(3)]
        sweeper = psutil.Process(own.children()["sweeper"])
        sweeper.suspend()
        try:
            held, expired = boss.lock(copies[0]), boss.lock(copies[1], ttl_seconds=1)
            boss.annotate(held, content="still writing")
            made = Stage(own, boss, graded, failed, held, expired, copies[2], old, folder)
            wait_for("an expired lock", lambda: _until(made.lock(copies[1])) < datetime.now(UTC), seconds=10)
            boss.wait_audit(copies[1], "LOCK")
            yield made
        finally:
            sweeper.resume()


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _until(lock: Json) -> datetime:
    return _at(lock["expires_at"])


# ---------------------------------------------------------------------------------------------- the audit trail
def _trail(stage: Stage, *columns: str, actions: tuple[str, ...] = ()) -> Rows:
    """Return what the API tells of the graded copy, oldest first."""
    events = [event for event in stage.boss.audit(stage.graded) if not actions or event["action"] in actions]
    told = [event | {"timestamp": _at(event["timestamp"])} for event in events]
    return [{column: event[column] for column in columns} for event in told]


TRAIL: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {
    "audit trail": (("action", "timestamp", "metadata"), (), False),
    "audit trail with actors": (("action", "actor_id", "timestamp", "metadata"), (), False),
    "actions": (("action", "timestamp"), (), False),
    "finalisations": (("action", "timestamp", "metadata"), ("FINALIZE",), True),
    "lock events": (("action", "actor_id", "timestamp"), ("LOCK", "UNLOCK"), True),
}


@pytest.mark.parametrize("name", TRAIL)
def test_the_audit_trail_of_a_copy(stage: Stage, name: str) -> None:
    columns, actions, is_newest_first = TRAIL[name]
    truth = _trail(stage, *columns, actions=actions)
    found = [
        row | ({"actor_id": str(row["actor_id"])} if "actor_id" in row else {}) for row in stage.ask(name, stage.graded)
    ]
    assert found and [row["timestamp"] for row in found] == sorted(
        (row["timestamp"] for row in found), reverse=is_newest_first
    )
    key = lambda row: (row["timestamp"], row["action"])  # noqa: E731
    assert sorted(found, key=key) == sorted(truth, key=key)
    assert {row["action"] for row in found} >= set(actions or ("IMPORT", "CREATE_ANN", "FINALIZE")) - {"UNLOCK"}


# ---------------------------------------------------------------------------------------------- copies
def test_a_failed_copy_tells_its_error(stage: Stage) -> None:
    truth = stage.boss.copy(stage.failed)
    assert truth["status"] == "GRADING_FAILED" and truth["grading_error_message"]
    (row,) = stage.ask("copy status", stage.failed)
    assert {name: row[name] for name in ("status", "grading_retries", "grading_error_message")} == {
        name: truth[name] for name in ("status", "grading_retries", "grading_error_message")
    }
    assert str(row["id"]) == stage.failed
    assert stage.ask("copy error", stage.failed) == [{"grading_error_message": truth["grading_error_message"]}]
    assert stage.ask("copy error", stage.graded) == [{"grading_error_message": ""}]


@pytest.mark.parametrize("which", ["graded", "failed", "ready", "old"])
def test_a_copy_and_the_number_of_its_events(stage: Stage, which: str) -> None:
    copy_id = getattr(stage, which)
    truth, events = stage.boss.copy(copy_id), stage.boss.audit(copy_id)
    (row,) = stage.ask("copy and its history", copy_id)
    assert row == {
        "id": row["id"],
        "anonymous_id": truth["anonymous_id"],
        "status": truth["status"],
        "grading_retries": truth["grading_retries"],
        "event_count": len(events),
    }
    assert str(row["id"]) == copy_id and len(events) >= 1


def test_copies_that_stay_in_staging(stage: Stage) -> None:
    truth = stage.boss.copy(stage.old)
    (row,) = stage.ask("stuck copies")
    assert (str(row["id"]), row["anonymous_id"]) == (stage.old, truth["anonymous_id"])
    assert row["created_at"] == _at(truth["created_at"]) < datetime.now(UTC) - timedelta(hours=1)
    assert stage.ask("number of stuck copies") == [{"count": 1}]


def test_copies_by_status(stage: Stage) -> None:
    truth = Counter(copy["status"] for copy in stage.everything())
    assert {row["status"]: row["count"] for row in stage.ask("copies by status")} == truth
    assert set(truth) == {"GRADED", "GRADING_FAILED", "LOCKED", "READY", "STAGING"}


def _rows_seen(plan: Rows) -> float:
    """Return how many rows the topmost node of an executed plan gave."""
    found = re.search(r"\(actual .*?rows=([\d.]+)", next(iter(plan[0].values())))
    assert found is not None
    return float(found.group(1))


def test_plans_are_executed(stage: Stage) -> None:
    ready = [copy for copy in stage.everything() if copy["status"] == "READY"]
    assert ready and _rows_seen(stage.ask("plan of ready copies")) == len(ready)
    exam_id = stage.exam_of(stage.graded)
    annotations = stage.boss.annotations(stage.graded)
    assert len(annotations) == 2
    assert _rows_seen(stage.ask("plan of annotations", exam_id=exam_id)) == len(annotations)
    assert stage.ask("annotations", stage.graded) == [{"count": len(annotations)}]


# ---------------------------------------------------------------------------------------------- locks
@pytest.mark.parametrize("which", ["held", "expired"])
def test_a_lock_and_its_owner(stage: Stage, which: str) -> None:
    copy_id = getattr(stage, which).copy_id
    truth = stage.lock(copy_id)
    users = {user["id"]: user for user in stage.boss.items("/api/users")}
    owner = users[stage.boss.user["id"]]
    (row,) = stage.ask("lock status", copy_id)
    assert (str(row["copy_id"]), str(row["owner_id"])) == (copy_id, owner["id"])
    assert row["owner_username"] == owner["username"]
    assert row["expires_at"] == _until(truth) and row["is_expired"] is (which == "expired")
    assert abs(row["current_time"] - datetime.now(UTC)) < timedelta(seconds=30)
    assert stage.ask("lock owner", copy_id) == [
        {"username": owner["username"], "email": owner["email"], "expires_at": _until(truth)}
    ]


def test_expired_locks(stage: Stage) -> None:
    (row,) = stage.ask("expired locks")
    assert (str(row["copy_id"]), str(row["owner_id"])) == (stage.expired.copy_id, stage.boss.user["id"])
    assert row["expires_at"] == _until(stage.lock(stage.expired.copy_id))


# ---------------------------------------------------------------------------------------------- the server
@contextmanager
def contention(stage: Stage, waiters: int) -> Iterator[tuple[int, list[int]]]:
    """One session holds a table and the others want it; gives the process ids of both."""
    url = stage.own.database_url()
    with ExitStack() as open_sessions:
        holder = open_sessions.enter_context(psycopg.connect(url))
        holder.execute("CREATE TABLE IF NOT EXISTS public.contended ()")
        holder.commit()
        holder.execute("LOCK TABLE public.contended")
        others = [open_sessions.enter_context(psycopg.connect(url)) for _ in range(waiters)]
        threads = [Thread(target=_wait_in_line, args=(other,)) for other in others]
        pids = [other.info.backend_pid for other in others]
        for thread in threads:
            thread.start()
        try:
            wait_for("waiters", lambda: {row["pid"] for row in stage.ask("waiting locks")} >= set(pids), seconds=20)
            yield holder.info.backend_pid, pids
        finally:
            holder.rollback()
            # Whoever gets the table next, all of them end.
            for other in others:
                other.cancel()
            for thread in threads:
                thread.join(20)


def _wait_in_line(connection: psycopg.Connection[Any]) -> None:
    with suppress(psycopg.errors.QueryCanceled):
        connection.execute("LOCK TABLE public.contended")
    connection.rollback()


def test_waiting_locks_and_who_holds_them(stage: Stage) -> None:
    with contention(stage, 1) as (holder, (waiter,)):
        mine = [row for row in stage.ask("waiting locks") if row["pid"] == waiter]
        assert [(row["locktype"], row["mode"], row["granted"]) for row in mine] == [
            ("relation", "AccessExclusiveLock", False)
        ]
        pairs = {(row["blocked_pid"], row["blocking_pid"]): row for row in stage.ask("who blocks whom")}
        row = pairs[waiter, holder]
        assert row["blocked_statement"] == "LOCK TABLE public.contended"
        assert row["blocked_user"] == row["blocking_user"] == sqlalchemy.make_url(stage.own.database_url()).username
    assert waiter not in {row["pid"] for row in stage.ask("waiting locks")}


def test_locks_by_table(stage: Stage) -> None:
    with contention(stage, 8):
        found = {(row["table_name"], row["mode"]): row["lock_count"] for row in stage.ask("locks by table")}
        assert found["public.contended", "AccessExclusiveLock"] == 9


def _server_processes(stage: Stage) -> int:
    """Count the processes of the database server that are sessions or background work, by the operating system."""
    server = psutil.Process(stage.own.children()["postgres"])
    return sum("logger" not in " ".join(child.cmdline()) for child in server.children())


def test_the_number_of_sessions(stage: Stage) -> None:
    def agrees() -> bool:
        before = _server_processes(stage)
        # The asking session is one more.
        return stage.ask("sessions") == [{"count": before + 1}] and before == _server_processes(stage)

    wait_for("a moment at which both agree", agrees, seconds=30, every_seconds=0.3)


def test_busy_sessions_and_what_they_do(stage: Stage) -> None:
    url, slow = stage.own.database_url(), "SELECT pg_sleep(600) /* somebody's report */"
    with ExitStack() as open_sessions:
        idle = [open_sessions.enter_context(psycopg.connect(url)) for _ in range(3)]
        for connection in idle:
            connection.execute("SELECT 1")  # and no commit: idle in transaction
        sleeper = open_sessions.enter_context(psycopg.connect(url))
        thread = Thread(target=_until_cancelled, args=(sleeper, slow))
        open_sessions.callback(thread.join)
        open_sessions.callback(sleeper.cancel)
        thread.start()
        pid = sleeper.info.backend_pid
        wait_for("the sleeper", lambda: pid in {row["pid"] for row in stage.ask("running queries")}, seconds=20)
        (row,) = [row for row in stage.ask("running queries") if row["pid"] == pid]
        assert row["query"] == slow and timedelta(0) <= row["duration"] < timedelta(minutes=2)
        busy = {row["pid"]: row for row in stage.ask("busy sessions by duration")}
        assert busy[pid]["query"] == slow and busy[pid]["state"] == "active"
        assert [busy[one.info.backend_pid]["state"] for one in idle] == ["idle in transaction"] * 3
        # The three, the sleeper and the one that asks, at a moment when no room is busy.
        wait_for("five busy sessions", lambda: stage.ask("busy sessions") == [{"count": 5}], seconds=30)


def _until_cancelled(connection: psycopg.Connection[Any], statement: str) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute(statement.encode())


# ---------------------------------------------------------------------------------------------- what changes something
def test_deleting_a_lock_releases_it_safely(stage: Stage) -> None:
    """The last test of this stage: the first DELETE spares who is still writing, then the sweeper tells of both."""
    held, expired = stage.held.copy_id, stage.expired.copy_id
    assert stage.ask("release of an expired lock", held) == [{"deleted": 0}]
    assert stage.ask("release of an expired lock", expired) == [{"deleted": 1}]
    assert stage.ask("release of a lock", held) == [{"deleted": 1}]
    assert stage.ask("release of a lock", held) == [{"deleted": 0}]
    psutil.Process(stage.own.children()["sweeper"]).resume()
    for copy_id in (held, expired):
        stage.boss.wait_copy(copy_id, ["READY"], seconds=30)
        unlocked = stage.boss.wait_audit(copy_id, "UNLOCK", seconds=20)
        assert [event["metadata"]["reason"] for event in unlocked if event["action"] == "UNLOCK"] == ["forced"]
        (row,) = stage.ask("copy status", copy_id)
        assert row["status"] == "READY"
    assert stage.boss.lock(held).fence == stage.held.fence + 2


def test_the_role_can_do_nothing_else(stage: Stage) -> None:
    for statement in (
        "UPDATE exams_copy SET status = 'GRADED'", "DELETE FROM exams_copy", "INSERT INTO exams_copy DEFAULT VALUES",
        "UPDATE grading_copylock SET expires_at = now()", "UPDATE auth_user SET is_active = false",
        "SELECT 1 FROM grading.copies", "SELECT 1 FROM grading.annotations",
        "SELECT password_hash FROM grading.users", "CREATE TABLE playbook.mine ()", "TRUNCATE exams_copy",
    ):  # fmt: skip
        with psycopg.connect(stage.support_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


# ---------------------------------------------------------------------------------------------- completeness
TESTED: Callable[[], set[str]] = lambda: set(re.findall(r'ask\("([^"]+)"', Path(__file__).read_text())) | TRAIL.keys()  # noqa: E731


def test_every_statement_is_run() -> None:
    assert TESTED() == RUN.keys()


def test_every_replaced_statement_has_its_equivalent_written_down() -> None:
    page = flat((Path(__file__).resolve().parents[2] / "docs" / "reference" / "sql.md").read_text())
    assert [statement for statement in map(flat, REPLACED) if statement not in page.replace("\\|", "|")] == []


@pytest.mark.allowed_skip("a checkout without ../shared has no seeds")
@pytest.mark.skipif(not SEEDS.is_dir(), reason=f"SEEDS MISSING: {SEEDS} is not there")
def test_no_statement_of_the_seeds_is_left_out() -> None:
    assert set(found_in_seeds()) == {flat(statement) for statement in (*RUN.values(), *REPLACED)}
