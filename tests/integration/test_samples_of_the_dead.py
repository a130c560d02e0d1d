"""What dead processes had counted stays, whatever the moment of their death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from korrigo_kit.telemetry import samples

# ----------------------------------------------------------------------------------------------- shared samples
COUNTING = """
import sys, time
from korrigo_kit.telemetry.metrics import counter, histogram
times = counter("times_total", "Times.", kind=("a", "b"))
seconds = histogram("long_seconds", "Seconds.", (1, 2))
for number in range(int(sys.argv[1])):
    times.labels("a").inc()
    seconds.observe(number % 3)
print("counted", flush=True)
time.sleep(60)
"""


class Counting:
    """Processes that count into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader = samples.SharedSamples(folder)

    def start(self, count: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(count)],
            env={**os.environ, samples.VARIABLE: str(self.folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "counted\n"
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def read(self) -> dict[str, float]:
        found = {}
        for family in self.reader.collect():
            for sample in family.samples if family.name in ("times", "long_seconds") else ():
                found[f"{sample.name}{json.dumps(sample.labels)}"] = sample.value
        return found

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.db"))


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    """A folder of samples of its own."""
    return Counting(tmp_path)


def test_what_the_dead_had_counted_stays_and_their_files_go(counting: Counting) -> None:
    living, dying = counting.start(7), counting.start(5)
    expected = {
        'times_total{"kind": "a"}': 12.0,
        'times_total{"kind": "b"}': 0.0,
        'long_seconds_bucket{"le": "1.0"}': 5 + 4.0,
        'long_seconds_bucket{"le": "2.0"}': 12.0,
        'long_seconds_bucket{"le": "+Inf"}': 12.0,
        "long_seconds_count{}": 12.0,
        "long_seconds_sum{}": 6 + 4.0,
    }
    assert counting.read() == expected
    counting.kill(dying)
    for _ in range(3):
        assert counting.read() == expected
    assert len(counting.files()) == 2 and all(f"_{living.pid}-" in name for name in counting.files())
    counting.kill(living)
    assert counting.read() == expected
    assert counting.files() == []
    for _ in range(3):  # files are bounded by the living, whatever dies
        counting.kill(counting.start(1))
        counting.read()
        assert counting.files() == []
    assert counting.read()['times_total{"kind": "a"}'] == 15


def test_a_reader_that_was_killed_while_tidying_counts_nothing_twice(counting: Counting) -> None:
    counting.kill(counting.start(4))
    left = {path.name: path.read_bytes() for path in counting.folder.glob("*.db")}
    before = counting.read()
    for name, data in left.items():  # as if the sum was written and the files were not yet removed
        (counting.folder / name).write_bytes(data)
    assert counting.read() == before
    assert counting.files() == []


def test_files_of_a_process_killed_while_making_them_do_no_harm(counting: Counting) -> None:
    counting.kill(counting.start(2))
    for name, data in (("counter_1-1.db", b""), ("histogram_1-1.db", b"\0" * 8), ("counter_2-2.db", b"\xff" * 64)):
        (counting.folder / name).write_bytes(data)
    assert counting.read()['times_total{"kind": "a"}'] == 2
    assert counting.read()['times_total{"kind": "a"}'] == 2


def test_no_room_on_the_disk_ends_no_process(tmp_path: Path) -> None:
    """Reserving fails as on a full disk (a limit of file size here); the process goes on and counts for itself."""
    script = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from korrigo_kit.telemetry.metrics import counter\n"
        "c = counter('times_total', 'Times.', kind=('a',))\nc.labels('a').inc()\nprint(c.labels('a')._value.get())"
    )
    env = {**os.environ, samples.VARIABLE: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1.0"


def test_folders_of_killed_workers_are_swept(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\nfrom korrigo_kit.telemetry import samples\n"
        "print(samples.share_below(pathlib.Path(sys.argv[1])))\nos._exit(9)"
    )
    made = [
        subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False).stdout
        for _ in range(3)
    ]
    assert len(set(made)) == 3
    assert [str(path) for path in tmp_path.iterdir()] == [made[-1].strip()]
