"""Every `korrigo …` that a text tells a person to type, held against the real tree of commands."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from korrigo.cli import COMMANDS

# A path may stand in front, a variable behind; what follows a pipe or a semicolon is another command.
_NAMED = re.compile(r"(?:^|[\s;&|(`\"'])(?:[\w./$]*bin/)?korrigo ([^\s;&|`)<>\"$][^;&|`)<>]*)")
# Not the program: a user, a package, a service, a database or a role of that name.
_NOT_THE_PROGRAM = re.compile(
    r"(\b(systemctl|journalctl|useradd|adduser|usermod|chown|install|id|su|DATABASE|ROLE|TO)|-u|-aG|User=).* korrigo\b"
)

# A namespace or a release of that name, in front of the command or behind it.
_IN_THE_CLUSTER = re.compile(r"(?:-n|--namespace|namespace|helm \w+) korrigo\b(?!/)")


def named(text: str) -> Iterator[str]:
    """Yield what follows the word `korrigo` in each command line of a text."""
    for line in text.splitlines():
        if not _NOT_THE_PROGRAM.search(line):
            for found in _NAMED.findall(_IN_THE_CLUSTER.sub("", line)):
                yield found.strip()


def complaint(words: str) -> str:
    """Tell what is wrong with a command line that begins after `korrigo`; empty when it can be typed."""
    given = shlex.split(words.rstrip(".,:…").replace("'", ""), comments=True)
    path, command, rest = _find(given)
    if command is None:
        return f"no command {' '.join(path)!r}"
    if getattr(command, "commands", None) and not getattr(command, "invoke_without_command", False):
        return f"{' '.join(path)!r} needs one more word"
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    return f"{' '.join(path)!r} has no option {unknown}" if unknown else ""


def _find(given: list[str]) -> tuple[list[str], Any, list[str]]:
    if not given:
        return [], None, []
    if given[0].startswith("--"):
        return [], None, []
    word = _spelt(given[0], COMMANDS)
    if word not in COMMANDS:
        return [given[0]], None, []
    command: Any = get_command(importlib.import_module(f"korrigo.commands.{COMMANDS[word][0]}").app)
    path, rest = [word], given[1:]
    while rest and (below := getattr(command, "commands", None)):
        if rest[0].startswith("-"):
            break
        name = _spelt(rest[0], below)
        if name not in below:
            return [*path, rest[0]], None, []
        command, path, rest = below[name], [*path, name], rest[1:]
    return path, command, rest


def _spelt(word: str, known: Any) -> str:
    # The playbooks' names are taken with underscores and with hyphens.
    return next((name for name in (word, word.replace("-", "_"), word.replace("_", "-")) if name in known), word)
