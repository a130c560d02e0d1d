"""Every word of the command line keeps the promises of the contract: an example, --json, --dry-run."""

from __future__ import annotations

from typing import Any

import pytest

from korrigo.cli import COMMANDS
from korrigo.command_pages import described, leaves, page
from korrigo.commands.logs import pretty, search
from korrigo.operating import moment, seconds
from korrigo_kit.errors import Invalid

LEAVES = dict(leaves())
# These only look: whatever they write is the file that --out names.
LOOKING = {
    "doctor", "doctor scenario", "incident list", "incident show", "stuck", "config show", "user list", "audit verify",
    "audit export", "backup verify", "backup list", "secrets check", "queue status", "logs grep", "render",
    "export annotations", "export_audit_logs", "version",
}  # fmt: skip
# These change something and cannot be tried without it; each says why.
EXCUSED = {
    "up": "serves until it is ended",
    "run": "serves until it is ended",
    "work": "serves until it is ended",
    "demo": "is itself a try-out: an exam of its own, which it makes and nobody else uses",
    "drill": "touches a scratch instance of its own only",
    "bench": "touches a scratch instance of its own only",
    "doctor monitoring": "sends an alert of severity none, which pages nobody; without it nothing would be known",
}
# Long-lived processes answer in logs.
SERVING = {"up", "run", "work"}


def _options(command: Any) -> set[str]:
    return {name for param in command.params for name in param.opts}


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_has_an_example_that_is_its_own(words: str) -> None:
    text, example = described(LEAVES[words])
    assert text
    assert f"korrigo {words}" in example.replace("_", "-") or f"korrigo {words}" in example


@pytest.mark.parametrize("words", sorted(set(LEAVES) - SERVING))
def test_every_command_answers_in_json(words: str) -> None:
    assert "--json" in _options(LEAVES[words])


@pytest.mark.parametrize("words", sorted(set(LEAVES) - LOOKING - set(EXCUSED)))
def test_what_changes_something_can_be_tried(words: str) -> None:
    """A new command is one that changes something, until it is entered above."""
    assert "--dry-run" in _options(LEAVES[words])


def test_what_is_excused_from_a_try_out_has_none() -> None:
    named = LOOKING | set(EXCUSED)
    assert {words for words in named & set(LEAVES) if "--dry-run" in _options(LEAVES[words])} == set()
    assert named <= set(LEAVES)


def test_the_page_names_every_word() -> None:
    text = page()
    assert all(f"## korrigo {word}" in text for word in COMMANDS)


def test_spans_and_moments() -> None:
    assert [seconds(text) for text in ("30s", "5m", "24h", "7d", "1.5 h")] == [30, 300, 86400, 604800, 5400]
    assert moment("2026-01-12").isoformat() == "2026-01-12T00:00:00+00:00"
    assert moment("2026-01-12T08:00:00+01:00").utcoffset() is not None
    for wrong in ("", "h", "-3h", "yesterday", "3 weeks"):
        with pytest.raises(Invalid):
            moment(wrong)


def test_rotated_and_packed_logs_are_searched_once(tmp_path: Any) -> None:
    import gzip

    line = '{"timestamp": "2026-01-12T08:00:00.000+00:00", "level": "ERROR", "message": "no", "copy_id": "c-1", "n": 1}'
    (tmp_path / "api.log").write_text(line + '\nnot json but c-1\n{"copy_id": "c-2"}\n')
    (tmp_path / "api.log.1").write_text(line + "\n")
    (tmp_path / "postgres").write_text(line.replace('"n": 1', '"n": 3'))
    with gzip.open(tmp_path / "worker.log.2.gz", "wt") as packed:
        packed.write(line.replace('"n": 1', '"n": 2') + "\n")
    found = list(search(tmp_path, "c-1"))
    assert sorted(item["n"] for item in found) == [1, 2]
    assert pretty(found[0] | {"exc_info": "Traceback\nBoom"}, "c-1").splitlines()[1:] == ["    Traceback", "    Boom"]
