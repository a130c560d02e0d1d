"""kubectl and helm as the administrator of one cluster, ours or somebody else's.

Used by `cluster.node` for the cluster that it runs, and by whoever installs something: all they need to know of a
cluster is its kubeconfig.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Kube:
    """One cluster, and the folder of programs to speak to it with."""

    # as the variable KUBECONFIG takes it: one path, or several with colons between
    kubeconfig: str
    binaries: Path
    # where kubectl and helm keep what they remember of this cluster
    home: Path

    def kubectl(self, *arguments: str, given: str | None = None, seconds: float = 120) -> str:
        """Run kubectl and return its output; raises AssertionError with its complaint."""
        return _output("kubectl", arguments, self.try_kubectl(*arguments, given=given, seconds=seconds))

    def try_kubectl(
        self, *arguments: str, given: str | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return what became of it."""
        return self._run("kubectl", arguments, given, seconds)

    def helm(self, *arguments: str, seconds: float = 600) -> str:
        """Run helm and return its output; raises AssertionError with its complaint."""
        return _output("helm", arguments, self.try_helm(*arguments, seconds=seconds))

    def try_helm(self, *arguments: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Run helm and return what became of it."""
        return self._run("helm", arguments, None, seconds)

    def get(self, *arguments: str) -> Json:
        """Return what `kubectl get` answers, as JSON."""
        found: Json = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def items(self, *arguments: str) -> list[Json]:
        """List the objects that `kubectl get` answers."""
        found: list[Json] = self.get(*arguments)["items"]
        return found

    def apply(self, objects: Sequence[Mapping[str, Any]], *, seconds: float = 120) -> None:
        """Apply objects; they are sent as one list."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        # the server's way: nothing is kept twice in an annotation, and what Helm owns stays its own
        # not validated here too: that begins with fetching the whole API, half a minute on a crowded machine
        words = ("apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-")
        self.kubectl(*words, given=json.dumps(listed), seconds=seconds)

    def argv(self, program: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """Return the command line and the environment of a program that speaks to this cluster."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "KUBECONFIG": self.kubeconfig}
        return [str(self.binaries / program), *arguments], environment

    def shell(
        self, commands: str, folder: Path, *, seconds: float = 600, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Do what a person would who types these lines into bash, with kubectl, helm and this cluster at hand."""
        _, environment = self.argv("kubectl")
        path = f"{self.binaries}{os.pathsep}{environment['PATH']}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], env=environment | {"PATH": path} | env, cwd=folder,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def _run(
        self, program: str, arguments: Sequence[str], given: str | None, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        argv, environment = self.argv(program, *arguments)
        return subprocess.run(
            argv,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


def _output(program: str, arguments: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode != 0:
        raise AssertionError(f"{program} {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
