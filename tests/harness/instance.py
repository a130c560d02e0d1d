"""A running product, driven from outside only: `Embedded` (`korrigo up`) or `Production` (one process per room).

Both answer the same questions, so that the story and the chaos test are written once. The children of the embedded
supervisor are read from `$KORRIGO_HOME/run/state.json`; in production mode `Keeper` plays systemd.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from psycopg import sql

from harness.processes import (
    Child,
    NotReady,
    clean_environment,
    descendants,
    is_alive,
    kill_hard,
    wait_for,
)

KORRIGO = Path(sys.executable).with_name("korrigo")
ADMIN_PASSWORD = "correct-horse-battery"
READY = re.compile(r"^Korrigo is ready at (http://[^\s]+)\s*$", re.MULTILINE)
ROOMS = ("ingest", "grading", "render", "audit")


class Instance(ABC):
    """One product with a home of its own."""

    mode: str

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="korrigo-test-home-"))
        # what its processes leave when they are killed goes with it; sandboxes of other users look in, too
        self.temporary = Path(tempfile.mkdtemp(prefix="korrigo-test-tmp-"))
        self.temporary.chmod(0o1777)
        self.admin_password = ADMIN_PASSWORD
        self.extra_env = dict(env or {})
        self.url = ""

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of its processes and of its CLI."""
        own = {"KORRIGO_HOME": str(self.home), "KORRIGO_ADMIN_PASSWORD": self.admin_password}
        own["TMPDIR"] = str(self.temporary)
        return clean_environment() | own | self.extra_env

    @property
    def logs(self) -> Path:
        """The folder of log files."""
        return self.home / "logs"

    def cli(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `korrigo WORDS` with this instance's environment; the caller looks at the exit code."""
        return subprocess.run(
            [str(KORRIGO), *words],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def log_lines(self) -> Iterator[dict[str, Any]]:
        """Yield every JSON log line of every process, with `_file` added."""
        for path in sorted(path for path in self.logs.glob("*.log*") if not path.name.startswith("django.log")):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield found | {"_file": path.name}

    def get(self, path: str, *, timeout: float = 10) -> httpx.Response:
        """GET without a login, without retry."""
        return httpx.get(self.url + path, timeout=timeout)

    def wait_ready(self, seconds: float) -> None:
        """Wait until /api/health/ready answers 200."""
        wait_for(
            f"{self.mode} instance",
            lambda: self.get("/api/health/ready", timeout=3).status_code == 200,
            seconds=seconds,
            every_seconds=0.2,
        )

    def __enter__(self) -> Instance:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start everything and wait until it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """End everything and remove the data."""

    @abstractmethod
    def workers(self) -> list[int]:
        """List the process ids of the job workers."""

    @abstractmethod
    def victims(self) -> dict[str, list[int]]:
        """Map each kind of victim that SIGKILL may take to its living processes."""

    @abstractmethod
    def wipe_broker(self) -> None:
        """Destroy every message of the broker."""

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Let the workers and their pools do nothing for the length of a block."""
        members = [psutil.Process(pid) for pid in (*self.workers(), *self.pool_children())]
        for member in members:
            member.suspend()
        try:
            yield
        finally:
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.resume()

    def pool_children(self) -> list[int]:
        """List the processes below the job workers: Celery's pool and the sandbox."""
        return [p.pid for worker in self.workers() for p in descendants(worker)]

    def kill(self, victim: str, choose: random.Random) -> str:
        """SIGKILL one process of that kind; returns what was killed, NotReady when there is none in 30 s."""
        pids = wait_for(f"a living {victim}", lambda: self.victims().get(victim), seconds=30)
        pid = choose.choice(sorted(pids))
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(psutil.Process(pid).cmdline())[:80]
            if kill_hard(pid):
                return f"{victim} {pid} ({command})"
        return f"{victim} {pid} (gone already)"

    def resident_bytes(self) -> int:
        """Sum the proportional memory of every process of this instance."""
        total = 0
        for root in self._roots():
            for member in [psutil.Process(root), *descendants(root)]:
                with contextlib.suppress(psutil.Error):
                    total += member.memory_full_info().pss
        return total

    @abstractmethod
    def _roots(self) -> list[int]: ...


class Embedded(Instance):
    """`korrigo up` with everything inside."""

    mode = "embedded"

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        super().__init__({"KORRIGO_HTTP__PORT": "0"} | dict(env or {}))
        self.home.chmod(0o755)  # as root the database runs under another user below this folder
        self.output = self.home / "up.out"
        self._up: Child | None = None

    def start(self, *, seconds: float = 120) -> None:
        """Run `korrigo up` and wait for the ready line."""
        before = self.output.stat().st_size if self.output.exists() else 0
        up = self._up = Child("korrigo up", [str(KORRIGO), "up"], self.output, self.env)
        up.start()

        def ready_line() -> str | None:
            found = READY.search(self.output.read_text(errors="replace")[before:])
            if found is None and not up.is_running():
                raise NotReady(f"korrigo up ended with {up.process and up.process.returncode}\n{up.tail()}")
            return found and found.group(1)

        try:
            self.url = wait_for("the ready line", ready_line, seconds=seconds)
        except NotReady as error:
            raise NotReady(f"{error}\n{up.tail()}") from None

    @property
    def up(self) -> Child:
        """The supervisor's process."""
        assert self._up is not None
        return self._up

    def state(self) -> dict[str, Any]:
        """Return run/state.json."""
        found = json.loads((self.home / "run" / "state.json").read_text())
        assert isinstance(found, dict)
        return found

    def children(self) -> dict[str, int]:
        """Map the supervisor's children to their living process ids."""
        return {name: pid for name, pid in self.state()["children"].items() if pid and is_alive(pid)}

    def workers(self) -> list[int]:
        return [pid for name, pid in self.children().items() if name.startswith("worker")]

    def victims(self) -> dict[str, list[int]]:
        kinds: dict[str, list[int]] = {"pool_child": self.pool_children()}
        for name, pid in self.children().items():
            kinds.setdefault(re.split(r"[-_:]", name)[0], []).append(pid)
        return kinds

    def wipe_broker(self) -> None:
        """Destroy the messages: every queue of pgmq is emptied in the instance's own database."""

        def wiped() -> bool:
            with psycopg.connect(self.database_url(), connect_timeout=3) as connection:
                connection.execute("SET ROLE korrigo_broker")
                names = [row[0] for row in connection.execute("SELECT queue_name FROM pgmq.meta").fetchall()]
                for name in names:
                    table = sql.Identifier("pgmq", f"q_{name}")
                    connection.execute(sql.SQL("TRUNCATE {}").format(table))
            return bool(names)

        wait_for("a wiped embedded broker", wiped, seconds=60, every_seconds=0.5)

    def database_url(self) -> str:
        """Return the administrator's URL of the embedded database."""
        # not in the contract: read where the supervisor must put it, in a child's environment
        for pid in self.children().values():
            with contextlib.suppress(psutil.Error):
                found = psutil.Process(pid).environ()
                if url := found.get("KORRIGO_DATABASE__URL"):
                    return url
                if path := found.get("KORRIGO_DATABASE__URL_FILE"):
                    return Path(path).read_text().strip()
        raise NotReady("no child tells the URL of the embedded database")

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Look behind the API, or do what no flow would do; returns the rows."""
        with psycopg.connect(self.database_url()) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def stop_cleanly(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30) -> int:
        """Signal the supervisor and return its exit code; the home stays."""
        return self.up.stop(number, seconds=seconds)

    def stop(self) -> None:
        if self._up is not None:
            try:
                if self._up.is_running():
                    self._up.stop(signal.SIGTERM, seconds=45)
            finally:
                self._up.kill()
        if os.environ.get("KORRIGO_TEST_KEEP_HOMES") != "1":
            shutil.rmtree(self.home, ignore_errors=True)
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _roots(self) -> list[int]:
        return [self.up.pid]
