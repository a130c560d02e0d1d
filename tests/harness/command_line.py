"""The command line without its start-up: a process that has loaded everything forks one child per command.

A command costs a second of imports; a test that gives thirty of them would spend half a minute on that alone. What
runs is `korrigo.cli.main` with the words, the environment and the exit code of a real command.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

_PROGRAM = """
import json, os, sys
from korrigo import cli, integrity, operating, rooms
rooms.rooms(), rooms.load_settings()
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        null = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((0, null), (1, order["stdout"]), (2, order["stderr"])):
            opened = target if isinstance(target, int) else os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class CommandLine:
    """Gives commands to one instance."""

    def __init__(self, env: Mapping[str, str], cwd: Path) -> None:
        self._env = dict(env)
        self._cwd = cwd
        self._folder = tempfile.TemporaryDirectory(prefix="korrigo-test-cli-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in env.items() if not name.startswith("KORRIGO_")},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `korrigo WORDS`; the caller looks at the exit code."""
        assert self._process.stdin is not None and self._process.stdout is not None
        files = {name: Path(self._folder.name) / name for name in ("stdout", "stderr")}
        order = {
            "words": words,
            "env": self._env | env,
            "cwd": str(self._cwd),
            **{name: str(path) for name, path in files.items()},
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(words, code, files["stdout"].read_text(), files["stderr"].read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
        self._folder.cleanup()
