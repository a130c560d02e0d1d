"""Prometheus and Alertmanager as processes, and a `systemctl` for the pages where there is no systemd.

The pages say `systemctl restart prometheus`; in a drill that is the drill's own process. As with systemd, a unit counts
as started once its process is there, whether or not it comes up.
"""

from __future__ import annotations

import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from korrigo import processes
from korrigo.drills.patience import crowding
from korrigo_kit.errors import Timeout, Unavailable

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
# A child ends with the thread that started it: this one lives as long as the process.
_SPAWNER = ThreadPoolExecutor(1, "spawner")
_SYSTEMCTL = """#!{python} -IS
import socket, sys
with socket.create_connection(("127.0.0.1", {port})) as caller:
    caller.sendall(" ".join(sys.argv[1:]).encode() + b"\\n")
    sys.exit((caller.recv(1) or b"\\1")[0])
"""


class Program:
    """A program that lives as long as the drill; it dies with this process."""

    def __init__(self, names: Sequence[str], words: Sequence[str], log: Path, url: str) -> None:
        path = next((found for name in names if (found := shutil.which(name, path=_search_path()))), None)
        if path is None:
            raise Unavailable("PROGRAM_MISSING", f"drills need {names[0]} on PATH (on Debian the package of that name)")
        self.url = url
        self._argv = [path, *words]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start it, and wait for nothing."""
        self._process = _SPAWNER.submit(self._open).result()

    def _open(self) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        with self._log.open("ab") as output:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: processes.die_with_parent(parent),
            )

    def start(self) -> None:
        """Start it and wait until it is ready; raises Timeout PROGRAM_NOT_READY."""
        self.spawn()
        began = time.monotonic()
        while not self.is_ready():
            if not self.is_alive() or time.monotonic() - began > _START_SECONDS * crowding():
                self.stop()
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])
                raise Timeout("PROGRAM_NOT_READY", f"{self._argv!r} is not ready; the end of its log:\n{tail}")
            time.sleep(0.1)

    def is_alive(self) -> bool:
        """Tell whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Tell whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:  # noqa: S310 - our loopback address
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """End it as the kernel does, with nothing put in order."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"


class Units:
    """A `systemctl` that knows some programs by the names of their Debian units; `folder` goes first on PATH."""

    def __init__(self, folder: Path, programs: Mapping[str, Program]) -> None:
        self.folder = folder
        units = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                words = self.rfile.readline().decode().split()
                self.wfile.write(bytes([units.act(words)]))

        self._programs = programs
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="units", daemon=True)
        self._thread.start()
        folder.mkdir(exist_ok=True)
        program = folder / "systemctl"
        program.write_text(_SYSTEMCTL.format(python=sys.executable, port=self._server.server_address[1]))
        program.chmod(0o755)

    def act(self, words: Sequence[str]) -> int:
        """Do `start`, `stop` or `restart` to units; 5 for a unit that is not there, 1 for anything else (systemctl)."""
        if not words or words[0] not in ("start", "stop", "restart"):
            return 1
        action, *names = words
        if not all(name in self._programs for name in names):
            return 5
        for name in names:
            program = self._programs[name]
            if action != "start":
                program.stop()
            if action != "stop" and not program.is_alive():
                program.spawn()
        return 0

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
