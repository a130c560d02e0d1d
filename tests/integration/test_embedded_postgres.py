"""The embedded PostgreSQL under its supervisor: what is acknowledged survives every kill of the postmaster."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from harness.processes import Child, clean_environment, is_alive, kill_hard, wait_for
from korrigo import postgres, processes
from korrigo.home import Home, fits_a_socket
from korrigo_kit.errors import Unavailable

KILLS = int(os.environ.get("KORRIGO_TEST_POSTGRES_KILLS", "12"))

# `korrigo up` reduced to its database.
PROGRAM = """
import sys
from pathlib import Path
from korrigo import postgres
from korrigo.home import Home
from korrigo.supervisor import Supervisor
home = Home(Path(sys.argv[1]))
home.prepare()
lock = home.lock()
server = postgres.prepare(home)
raise SystemExit(Supervisor(home, [server.child()], on_ready=lambda: print(server.url, flush=True)).run())
"""


class Instance:
    """One home with a supervised database."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.output = root.with_name(f"{root.name}.out")
        self.child = Child("supervisor", [sys.executable, "-c", PROGRAM, str(root)], self.output, clean_environment())

    def start(self) -> str:
        before = self.output.stat().st_size if self.output.exists() else 0
        self.child.start()

        def said() -> str:
            is_running = self.child.is_running()
            text = self.output.read_text()[before:]
            if not is_running:
                return text.strip() or "ended without a word"
            # a traceback comes in pieces: while it runs, only its whole line with the address counts
            urls = [line for line in text.splitlines(keepends=True) if line.startswith("postgresql:")]
            return urls[0].strip() if urls and urls[0].endswith("\n") else ""

        return wait_for(f"a database in {self.home.root}", said, seconds=60, every_seconds=0.02)

    def postmaster(self) -> int:
        return int((self.home.state() or {})["children"]["postgres"])


Make = Callable[[str], Instance]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make homes below a folder that the database user can enter (pytest's own is 0700)."""
    folder = Path(tempfile.mkdtemp(prefix="korrigo-test-"))
    folder.chmod(0o755)
    made: list[Instance] = []

    def instance(name: str) -> Instance:
        made.append(Instance(folder / name))
        return made[-1]

    yield instance
    for one in made:
        one.child.stop(seconds=60)
    shutil.rmtree(folder, ignore_errors=True)


def test_data_survive_a_restart_and_two_homes_run_side_by_side(make: Make) -> None:
    first, second = make("first"), make("second")
    for instance in (first, second):
        with psycopg.connect(instance.start(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT %s AS name", (instance.home.root.name,))
    pid = first.postmaster()
    assert first.child.stop(signal.SIGTERM) == 0
    assert not is_alive(pid)
    for instance, url in ((first, first.start()), (second, "")):
        with psycopg.connect(url or postgres.prepare(instance.home).url) as connection:
            assert connection.execute("SELECT name FROM kept").fetchone() == (instance.home.root.name,)


def test_it_is_closed_and_careful(make: Make) -> None:
    instance = make("closed")
    url = instance.start()
    with psycopg.connect(url) as connection:
        settings = {
            name: str((connection.execute(f"SHOW {name}").fetchone() or ("",))[0])
            for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "listen_addresses")
        }
        rule = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
        collation = connection.execute("SELECT 'É' < 'a', lower('É')").fetchone()
    on = {"fsync", "synchronous_commit", "full_page_writes", "data_checksums"}
    assert {name for name, value in settings.items() if value == "on"} == on
    assert settings["listen_addresses"] == ""
    assert rule == [("scram-sha-256",)]
    assert collation == (False, "é")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url, password="wrong")
    home = instance.home
    for private in (home.postgres, home.postgres / "socket", home.secrets, home.run):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((home.secrets / "postgres-password").stat().st_mode) == 0o600
    owner = (home.postgres / "data").stat().st_uid
    assert owner != 0
    assert processes.stat(instance.postmaster()) is not None
    assert Path(f"/proc/{instance.postmaster()}").stat().st_uid == owner


def test_a_long_home_gets_a_short_socket(make: Make) -> None:
    instance = make("l" * 100)
    with psycopg.connect(instance.start()) as connection:
        folder = (connection.execute("SHOW unix_socket_directories").fetchone() or ("",))[0]
    assert not fits_a_socket(instance.home.postgres / "socket")
    assert fits_a_socket(Path(folder))
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    instance.child.stop()
    shutil.rmtree(folder)


def test_a_second_supervisor_is_refused_by_name(make: Make) -> None:
    first = make("one")
    first.start()
    second = make("one")
    said = second.start()
    assert "HOME_IN_USE" in said
    assert str(first.child.pid) in said
    assert str(first.home.root) in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")
def test_a_home_out_of_reach_is_named_and_its_parents_are_left_alone(make: Make) -> None:
    hidden = make("hidden").home.root
    hidden.mkdir(mode=0o700)
    home = Home(hidden / "home")
    home.prepare()
    with pytest.raises(Unavailable, match=f"cannot enter {hidden} ") as caught:
        postgres.prepare(home)
    assert caught.value.reason == "HOME_NOT_REACHABLE"
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")
def test_binaries_out_of_reach_are_copied_into_the_home(make: Make) -> None:
    home = make("copied").home
    home.prepare()
    original = postgres.find_binaries({}, home.postgres / "data").folder
    hidden = home.root.with_name("venv")
    shutil.copytree(original.parent, hidden / postgres.WHEEL / original.parent.name, symlinks=True)
    with suppress(FileNotFoundError):
        shutil.copytree(original.parents[2] / f"{postgres.WHEEL}.libs", hidden / f"{postgres.WHEEL}.libs")
    hidden.chmod(0o700)
    found = hidden / postgres.WHEEL / original.parent.name / "bin"
    server = postgres.prepare(home, {postgres.BINARIES_VARIABLE: str(found)})
    assert server.binaries.folder.is_relative_to(home.root)
    assert (server.data / "PG_VERSION").exists()


def test_a_stale_lock_file_that_names_a_living_stranger_does_not_stop_a_start(make: Make) -> None:
    instance = make("stale")
    instance.start()
    instance.child.stop()
    lock = instance.home.postgres / "data" / "postmaster.pid"
    server = postgres.prepare(instance.home)
    # A process of the same user, as after a reboot that gave the number away again.
    stranger = Child("stranger", ["sleep", "60"], instance.output, {"PATH": "/usr/bin:/bin"})
    stranger.user = server.user.name if server.user.is_dropped else None
    stranger.cwd = Path("/")
    stranger.start()
    lock.write_text(f"{stranger.pid}\n{server.data}\n{int(time.time())}\n5432\n\n\n\n")
    shutil.chown(lock, server.user.user_id, server.user.group_id)
    with psycopg.connect(instance.start()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert is_alive(stranger.pid)
    stranger.kill()


def test_after_a_kill_of_the_supervisor_nothing_is_left_and_the_next_start_works(make: Make) -> None:
    instance = make("orphaned")
    with psycopg.connect(instance.start(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")
    data = instance.home.postgres / "data"
    assert processes.working_in(data)
    supervisor = instance.child.process
    assert supervisor is not None
    kill_hard(supervisor.pid)
    supervisor.wait()
    with psycopg.connect(instance.start()) as connection:  # at once: the old postmaster may still be stopping
        assert connection.execute("SELECT n FROM kept").fetchone() == (1,)
    again = instance.child.process
    assert again is not None
    kill_hard(again.pid)
    again.wait()
    wait_for("an empty data folder", lambda: not processes.working_in(data), seconds=30)


def test_no_acknowledged_commit_is_lost_when_the_postmaster_is_killed(make: Make) -> None:
    """reliability.md 2: kill -9 of the postmaster under insert load; the ledger is kept by the client."""
    instance = make("killed")
    url = instance.start()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE ledger (writer int, n int, PRIMARY KEY (writer, n))")
    stop = threading.Event()
    acked: list[list[int]] = [[], []]

    def insert(writer: int) -> None:
        n = 0
        while not stop.is_set():
            with suppress(psycopg.Error), psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
                while not stop.is_set():
                    n += 1
                    connection.execute("INSERT INTO ledger VALUES (%s, %s)", (writer, n))
                    acked[writer].append(n)

    writers = [threading.Thread(target=insert, args=(number,), daemon=True) for number in (0, 1)]
    for writer in writers:
        writer.start()
    recoveries = []
    for kill in range(KILLS):
        before = sum(map(len, acked))
        wait_for(f"load before kill {kill + 1}", lambda: sum(map(len, acked)) > before + 100, seconds=30)  # noqa: B023
        victim = instance.postmaster()
        count = sum(map(len, acked))
        kill_hard(victim)
        killed = time.monotonic()
        wait_for(
            "a new postmaster and the first commit through it",
            lambda: instance.postmaster() != victim and _commits(url),  # noqa: B023
            seconds=60,
            every_seconds=0.02,
        )
        recoveries.append(time.monotonic() - killed)
        assert sum(map(len, acked)) >= count
    stop.set()
    for writer in writers:
        writer.join(10)
    with psycopg.connect(url) as connection:
        stored = set(connection.execute("SELECT writer, n FROM ledger").fetchall())
    lost = [(writer, n) for writer in (0, 1) for n in acked[writer] if (writer, n) not in stored]
    recoveries.sort()
    print(
        f"{KILLS} kills, {sum(map(len, acked))} acknowledged commits, {len(lost)} lost; recovery min/median/max "
        f"{recoveries[0]:.2f}/{recoveries[len(recoveries) // 2]:.2f}/{recoveries[-1]:.2f} s"
    )
    assert lost == []
    assert recoveries[-1] < 30


def _commits(url: str) -> bool:
    with psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
        connection.execute("INSERT INTO ledger SELECT 2, coalesce(max(n), 0) + 1 FROM ledger WHERE writer = 2")
    return True
