"""The instance that drills break: `korrigo up` on a home of its own, thrown away at the end.

The folders of stored files and of uploads are small file systems in memory where mounting is possible, so that
filling one up or making it read-only is real and harms nobody. They are mounted in a mount namespace of this process:
the kernel takes them away however the drill ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from korrigo import processes
from korrigo.drills.desk import Desk
from korrigo.general_log import is_copy
from korrigo.home import Home
from korrigo_kit.errors import Bug, Timeout, Unavailable

VOLUME_MEGABYTES = 192
_START_SECONDS = 180.0
_TERMINALS = threading.BoundedSemaphore(2)
_POLITELY = ("nice", "-n", "10") if shutil.which("nice") else ()
_STOP_SECONDS = 60.0
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


def started(env: Mapping[str, str], output: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Run `korrigo up`, which ends with this process, and wait for its address; raises Unavailable START_FAILED."""
    parent = os.getpid()
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "korrigo", "up"],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: processes.die_with_parent(parent, signal.SIGTERM),
        )
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        lines = output.read_text().splitlines()
        if url := next((line.split()[-1] for line in lines if line.startswith("Korrigo is ready at ")), ""):
            return process, url
        time.sleep(0.1)
    ended(process)
    raise Unavailable("START_FAILED", f"the scratch instance did not start:\n{output.read_text()[-2000:]}")


def ended(process: subprocess.Popen[bytes]) -> None:
    """End `korrigo up`, by force when it takes too long."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Scratch:
    """A running product with everything that a drill may do to it. Make it in the main thread."""

    def __init__(self, *, keep: Path | None = None) -> None:
        self.folder = keep or Path(tempfile.mkdtemp(prefix="korrigo-drill-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # as root the database runs under another user below this folder
        self._is_kept = keep is not None
        self.home = Home(self.folder / "home")
        self.home.prepare()
        self.spool = self.home.root / "spool"
        self.spool.mkdir(mode=0o700, exist_ok=True)
        self.has_volume = self._mount()
        self.password = secrets.token_urlsafe(15)
        self.env = self._environment()
        self.url = ""
        self._up: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------------------------------- start and stop
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KORRIGO_")}
        own = {
            "KORRIGO_HOME": str(self.home.root),
            "KORRIGO_ADMIN_PASSWORD": self.password,
            "KORRIGO_HTTP__PORT": "0",
            # What the alerts see must be as quick as their divided rules.
            "KORRIGO_HTTP__METRICS_CACHE_SECONDS": "1",
            "KORRIGO_UPLOAD__SPOOL": str(self.spool),
            # A tenth of the volume, as 1 GiB is of a usual disk.
            "KORRIGO_UPLOAD__MIN_FREE_BYTES": str(VOLUME_MEGABYTES * 1024 * 1024 // 10),
            # So little that one page can want more; a page that gets no processor is given up after seconds.
            "KORRIGO_RENDER__MEMORY_BYTES": str(64 << 20),
            "KORRIGO_IMPORT__PAGE_SECONDS": "0.25",
            # No backup of what is thrown away.
            "KORRIGO_BACKUP__NIGHTLY": "false",
        }
        folder = Path(sys.executable).parent
        return kept | own | {"PATH": f"{folder}:{kept.get('PATH', os.defpath)}:/usr/sbin:/sbin"}

    def start(self) -> None:
        """Start it and wait for the ready line; raises Unavailable START_FAILED."""
        self._up, self.url = started(self.env, self.folder / "up.out")

    def stop(self) -> None:
        """End it and remove everything of it."""
        if self._up is not None:
            ended(self._up)
        if self.has_volume:
            for folder in (self.home.blobs, self.spool):
                _run_quietly("umount", "-l", str(folder))
        if not self._is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------- what drills use
    def desk(self, username: str = "admin", password: str = "") -> Desk:
        """Log a user in, the administrator by default."""
        return Desk(self.url, username, password or self.password)

    def korrigo(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Give a command to the instance; its exit code is the caller's business."""
        return self.run([sys.executable, "-m", "korrigo", *words], self.env, seconds)

    def run(
        self, argv: Sequence[str], env: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run what a person types: some at a time and with lower priority.

        In fast motion a scrape that comes a second late is one that came 20 seconds late.
        """
        with _TERMINALS:
            return subprocess.run(
                [*_POLITELY, *argv],
                env=env, cwd=self.folder, capture_output=True, text=True, timeout=seconds, check=False,
            )  # fmt: skip

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement behind the product's back, as the database's administrator."""
        import psycopg

        url = (self.home.secrets / "database-url").read_text().strip()
        with psycopg.connect(url, connect_timeout=5, autocommit=True, application_name="drill") as connection:
            # Without values as it stands, so that several statements may come together.
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def lock_out(self, role: str) -> None:
        """Let a role of the database in no more, and end its sessions."""
        self.sql(f"ALTER ROLE {role} NOLOGIN")
        self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", role)

    def let_in(self, role: str) -> None:
        """Let a role in again."""
        self.sql(f"ALTER ROLE {role} LOGIN")

    def child(self, name: str) -> int:
        """Return the process id of a part of `korrigo up`; raises Timeout when it is away for long."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pid = ((self.home.state() or {}).get("children") or {}).get(name)
            if pid and processes.is_alive(pid):
                return int(pid)
            time.sleep(0.2)
        raise Timeout("DRILL_WAITED", f"no living {name}")

    def family(self, name: str) -> list[int]:
        """List the processes of a part: its own and whatever it started."""
        return processes.in_session(self.child(name))

    def log_lines(self) -> list[dict[str, Any]]:
        """Read every log line that is JSON."""
        found = []
        for path in sorted(path for path in self.home.logs.glob("*.log") if not is_copy(path)):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    try:
                        found.append(json.loads(line))
                    except ValueError:
                        continue
        return found

    # ------------------------------------------------------------------------------------- the volumes
    def _mount(self) -> bool:
        if os.geteuid() != 0:
            return False
        libc = ctypes.CDLL(None, use_errno=True)
        # A namespace of its own first: what is mounted in it is nobody else's, and ends with us.
        if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
            return False
        options = f"size={VOLUME_MEGABYTES}m,mode=700"
        return all(
            _run_quietly("mount", "-t", "tmpfs", "-o", options, "korrigo-drill", str(folder))
            for folder in (self.home.blobs, self.spool)
        )

    def remount(self, folder: Path, option: str) -> None:
        """Change a volume: `ro`, `rw`, or another size such as `size=400m`; raises Bug DRILL_MOUNT_FAILED."""
        if not _run_quietly("mount", "-o", f"remount,{option}", str(folder)):
            raise Bug("DRILL_MOUNT_FAILED", f"{folder} does not become {option}")


def _run_quietly(*words: str) -> bool:
    program = shutil.which(words[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        return False
    return subprocess.run([program, *words[1:]], capture_output=True, check=False).returncode == 0
