"""The command line without its start-up: a process that has loaded everything forks one child per command.

A command costs a second of imports; a test that gives thirty of them would spend half a minute on that alone. What
runs is `korrigo.cli.main` with the words, the environment, the folder, the open files and the exit code of a real
command. Tests call it; bash finds it as `korrigo` in `folder`, for the tests that run what the runbooks say.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PROGRAM = """
import json, os, signal, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
from korrigo import cli, integrity, operating, rooms
rooms.rooms(), rooms.load_settings()
print("ready", flush=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    caller, _ = listener.accept()
    if os.fork():
        caller.close()
        continue
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, files, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    while not data.endswith(b"\\n"):
        data += caller.recv(1 << 20)
    order = json.loads(data)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    for number, opened in enumerate(files):
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["korrigo", *order["words"]]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    caller.sendall(bytes([code]))
    os._exit(code)
"""

_CLIENT = """#!{python} -IS
import json, os, socket, sys
caller = socket.socket(socket.AF_UNIX)
caller.connect({address!r})
order = {{"words": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}
data = json.dumps(order).encode() + b"\\n"
caller.sendall(data[socket.send_fds(caller, [data], [0, 1, 2]):])
sys.exit((caller.recv(1) or b"\\xff")[0])
"""


class CommandLine:
    """Gives commands to one instance."""

    def __init__(self, env: Mapping[str, str], cwd: Path) -> None:
        self._env = dict(env)
        self._cwd = cwd
        self._home = tempfile.TemporaryDirectory(prefix="korrigo-test-cli-")
        self.folder = Path(self._home.name)
        self._address = str(self.folder / "socket")
        client = self.folder / "korrigo"
        client.write_text(_CLIENT.format(python=sys.executable, address=self._address))
        client.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(listener.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[listener.fileno()],
                env={name: value for name, value in env.items() if not name.startswith("KORRIGO_")},
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `korrigo WORDS`; the caller looks at the exit code."""
        order = {"words": words, "env": self._env | env, "cwd": str(self._cwd)}
        with (
            socket.socket(socket.AF_UNIX) as caller,
            open(os.devnull) as nothing,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            caller.connect(self._address)
            data = json.dumps(order).encode() + b"\n"
            caller.sendall(data[socket.send_fds(caller, [data], [nothing.fileno(), out.fileno(), err.fileno()]) :])
            answer = caller.recv(1)
            assert answer, "the command ended without a word"
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, answer[0], out.read(), err.read())

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Run `korrigo WORDS --json`, which must exit with `code`, and return its object."""
        done = self(*words, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            process.kill()
        self._home.cleanup()
