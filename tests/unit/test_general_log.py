"""One log of all processes: no line is lost, torn or doubled while several write it and one rotates it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from korrigo import general_log
from korrigo.commands.logs import search
from korrigo.doctor.lines import Lines
from korrigo.home import Home
from korrigo_kit.telemetry import logs

WRITERS, LINES = 4, 1500
_WRITER = """
import logging, sys
from korrigo_kit.telemetry import logs
logs.join_general(f"writer-{sys.argv[2]}", "INFO", sys.argv[1])
for number in range(int(sys.argv[3])):
    # some longer than a page of memory, as those with a traceback are
    logging.getLogger("w").info("line %s of %s %s", number, sys.argv[2], "x" * (9000 if number % 7 == 0 else 80))
"""


def test_lines_survive_several_writers_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / general_log.NAME
    words = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*words, str(writer), str(LINES)]) for writer in range(WRITERS)]
    rotations = 0
    while any(writer.poll() is None for writer in writers):
        rotations += general_log.rotate(path, at_bytes=100_000, files=400)
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    files = [file for file in tmp_path.iterdir() if general_log.is_copy(file)]
    assert rotations >= 5 and len(files) >= rotations
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    said = sorted(tuple(line["message"].split()[1:4:2]) for line in found)
    assert said == sorted((str(number), str(writer)) for number in range(LINES) for writer in range(WRITERS))


def test_ten_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / general_log.NAME
    assert not general_log.rotate(path)
    for number in range(25):
        general_log.append(path, f"{number}")
        assert general_log.rotate(path, at_bytes=1)
    general_log.append(path, "25")
    assert not general_log.rotate(path, at_bytes=100)
    kept = {file.name: file.read_text().strip() for file in tmp_path.iterdir()}
    assert kept == {"django.log": "25"} | {f"django.log.{number}": str(25 - number) for number in range(1, 10)}


def test_an_older_homes_link_gives_way_and_the_old_file_stays(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    (home.logs / "api.log").write_text("of the api\n")
    (home.logs / general_log.NAME).symlink_to("api.log")
    home.prepare()
    general_log.append(home.logs / general_log.NAME, "of all")
    home.prepare()
    assert (home.logs / "api.log").read_text() == "of the api\n"
    assert (home.logs / general_log.NAME).read_text() == "of all\n"


def test_a_line_that_stands_in_both_files_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As under `korrigo up`: standard output is the process's own file."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.configure("worker", "INFO", None, str(tmp_path / general_log.NAME))
        logging.getLogger("w").error("Import failed for copy c-1: TIMEOUT")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    (tmp_path / "worker.log").write_text(capfd.readouterr().out)
    (tmp_path / "django.log.1").write_text((tmp_path / "worker.log").read_text().replace("c-1", "c-1 (older)"))
    assert (tmp_path / "worker.log").read_text() == (tmp_path / general_log.NAME).read_text()
    assert len(list(search(tmp_path, "c-1"))) == 1
    assert len(Lines([tmp_path]).having("Import failed for copy")) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.allowed_skip("a system without /dev/full")
def test_a_full_disk_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = logs.SharedFile("/dev/full")
    handler.handle(logging.makeLogRecord({"msg": "x"}))
    handler.close()
    general_log.append(Path("/dev/full"), "x")
    assert Path("/dev/full").is_char_device()
