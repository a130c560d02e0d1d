"""The Mitigation part of every runbook, run twice as it is written: the second time changes nothing any more.

One instance in trouble: a copy whose final PDF failed because a file was lost, a lock whose holder is away, an
annotation behind its page's edge, a forgotten transaction, a closed account. Each page gets the copy, the account or
the process id that its Diagnosis would name. After every block, what people scanned, wrote and marked is compared.
The drills run the same blocks again, each in the trouble that its alert is about.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from harness.client import Client
from harness.command_line import CommandLine
from harness.instance import Embedded
from harness.processes import free_port
from harness.ready import ready_copy
from harness.runbooks import PAGES, blocks, parts, preamble, terminal_environment

# Rows that people made, or that decide about their work; no times and no counters that tick by themselves.
STATE = """
SELECT 'copy', id::text, status || ' ' || revision || ' ' || coalesce(final_score::text, '-') FROM grading.copies
UNION ALL SELECT 'annotation', id::text, concat_ws(' ', content, score_delta, x, y, w, h, version, deleted_at IS NULL)
  FROM grading.annotations
UNION ALL SELECT 'scores', copy_id::text, scores::text FROM grading.scores
UNION ALL SELECT 'lock', copy_id::text, owner_id::text FROM grading.copy_locks
UNION ALL SELECT 'account', username, concat_ws(' ', roles, is_active) FROM grading.users
UNION ALL SELECT 'scan', id::text, state || ' ' || coalesce(error_reason, '') FROM ingest.scans
UNION ALL SELECT 'switch', name, value::text FROM grading.switches WHERE name = 'read_only'
UNION ALL SELECT 'holder', pid::text, state FROM pg_stat_activity WHERE application_name = 'somebody'
ORDER BY 1, 2
"""
# They take seconds, and twice is no more than two backups, two bundles of evidence, two restarts.
ONCE = (
    "korrigo backup", "korrigo incident isolate\n", "systemctl restart", "replace api", "replace relay",
    "replace sweeper",
)  # fmt: skip
_SYSTEMCTL = """#!{python} -IS
import socket, sys
caller = socket.socket(socket.AF_UNIX)
caller.connect({address!r})
caller.sendall(" ".join(sys.argv[1:]).encode() + b"\\n")
sys.exit((caller.recv(1) or b"\\1")[0])
"""


class Systemd(threading.Thread):
    """Restarts the instance as systemd does when a page says `systemctl restart korrigo`; notes every other wish."""

    def __init__(self, own: Embedded, folder: Path) -> None:
        super().__init__(name="systemd", daemon=True)
        self.asked: list[str] = []
        self._own = own
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "systemd"))
        self._listener.listen()
        program = folder / "systemctl"
        program.write_text(_SYSTEMCTL.format(python=sys.executable, address=str(folder / "systemd")))
        program.chmod(0o755)

    def run(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            with caller:
                asked = caller.recv(1000).decode().strip()
                if asked == "stop":
                    break
                self.asked.append(asked)
                if asked == "restart korrigo":
                    self._own.stop_cleanly()
                    self._own.start()
                caller.sendall(b"\0")
        self._listener.close()


@dataclass(frozen=True)
class Trouble:
    """A broken instance, and what the pages are given about it."""

    terminal: Mapping[str, str]
    given: Mapping[str, Mapping[str, str]]
    systemd: Systemd
    seen: set[str]
    own: Embedded

    def state(self) -> list[str]:
        """Read what must not change the second time; while a final PDF is being made, wait."""
        with psycopg.connect(self.own.database_url()) as connection:
            return [" ".join(map(str, row)) for row in connection.execute(STATE).fetchall()]


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    folder = tmp_path_factory.mktemp("trouble")
    with Embedded({"KORRIGO_HTTP__PORT": str(free_port()), "KORRIGO_BACKUP__NIGHTLY": "false"}) as own:
        assert isinstance(own, Embedded)
        with CommandLine(own.env, own.home) as korrigo, Client(own.url, patience_seconds=20) as boss:
            boss.login("admin", own.admin_password)
            systemd = Systemd(own, korrigo.folder)
            systemd.start()
            with psycopg.connect(own.database_url(), application_name="somebody") as forgetful:
                token = boss.http.headers["Authorization"].removeprefix("Bearer ")
                terminal = terminal_environment(own.env, korrigo.folder) | {"BASE": own.url, "TOKEN": token}
                yield Trouble(terminal, _break(own, boss, forgetful, folder), systemd, set(), own)
                forgetful.close()
            subprocess.run([str(korrigo.folder / "systemctl"), "stop"], timeout=30, check=False)
            systemd.join(30)


def _break(
    own: Embedded, boss: Client, forgetful: psycopg.Connection[object], folder: Path
) -> dict[str, dict[str, str]]:
    lost, outside, held = (str(ready_copy(boss, folder)["id"]) for _ in range(3))
    locks = {copy_id: boss.lock(copy_id) for copy_id in (lost, outside, held)}
    for lock in locks.values():
        boss.annotate(lock, content="Très bien", score_delta=0.5)
        boss.put_scores(lock, {"q1": 7.5, "q2": 9})

    with psycopg.connect(own.database_url()) as connection:
        [(sha,)] = connection.execute("SELECT source_sha256 FROM grading.copies WHERE id = %s", (lost,)).fetchall()
        # Behind the product's back: no request could put it there.
        for (name,) in connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'grading.annotations'::regclass AND contype = 'c'"
            " AND conname ~ 'annotations_(x|y|w|h|check)'"
        ).fetchall():
            connection.execute(f'ALTER TABLE grading.annotations DROP CONSTRAINT "{name}"')
        connection.execute("UPDATE grading.annotations SET x = 1.4 WHERE copy_id = %s", (outside,))
    file = own.home / "blobs" / "cas" / sha[:2] / sha
    backup = folder / "backup" / "objects" / sha[:2]
    backup.mkdir(parents=True)
    shutil.move(file, backup / sha)
    boss.finalize(locks[lost])
    boss.wait_copy(lost, ["GRADING_FAILED"], seconds=120)
    boss.finalize(locks[outside])
    boss.wait_copy(outside, ["GRADING_FAILED"], seconds=120)

    closed = boss.create_user("zoe", "a-password-of-zoe", ["marker"])
    boss.json("PATCH", f"/api/users/{closed['id']}", json={"active": False})
    forgetful.execute("SELECT 1")
    return {
        "object-store": {"FROM": str(folder / "backup")},
        "retries-exhausted": {"COPY": lost},
        "finalization-failing": {"COPY": outside},
        "lock-conflicts": {"COPY": held},
        "expired-locks": {"COPY": held},
        "intervention-failed": {"COPY": held},
        "login-failures": {"WHO": "zoe", "ID": closed["id"]},
        "database-blocked": {"HOLDER": str(forgetful.info.backend_pid)},
        "error-rate": {"ALLOW_CHANGES": "yes"},
    }


# In the order in which a person would heal this instance: the lost file first, the trail's evidence last.
FIRST = ("object-store", "retries-exhausted", "finalization-failing", "lock-conflicts", "database-blocked")
LAST = "audit-chain"
ORDERED = sorted(PAGES, key=lambda page: (page.stem == LAST, page.stem not in FIRST, page.stem != FIRST[0]))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on PATH")
@pytest.mark.parametrize("page", ORDERED, ids=lambda page: page.stem)
def test_every_remedy_runs_twice_and_changes_nothing_more(page: Path, trouble: Trouble, tmp_path: Path) -> None:
    for block in blocks(parts(page)["Mitigation"]):
        lines = set(block.splitlines())
        if lines <= trouble.seen and "$" not in block:
            continue
        trouble.seen.update(lines)
        _run(trouble, page, block, tmp_path)
        first = trouble.state()
        if not any(word in block for word in ONCE):
            _run(trouble, page, block, tmp_path)
            assert trouble.state() == first, block


def _run(trouble: Trouble, page: Path, block: str, folder: Path) -> None:
    env = {**trouble.terminal, **trouble.given.get(page.stem, {})}
    settled = "for _ in $(seq 60); do sql \"SELECT 'busy' FROM exams_copy WHERE status = 'GRADING_IN_PROGRESS'\" |"
    script = f"{preamble()}\n{block}\n{settled} grep -q busy || break; sleep 1; done"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=env, cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr


def test_the_instance_is_healed_and_nobody_lost_anything(trouble: Trouble) -> None:
    """After all pages: both failed copies are graded or back with their marker, and the marks are those given."""
    given = trouble.given
    with psycopg.connect(trouble.own.database_url()) as connection:
        status: dict[str, str] = dict(connection.execute("SELECT id::text, status FROM grading.copies").fetchall())
        scores = connection.execute("SELECT scores FROM grading.scores").fetchall()
        notes = connection.execute("SELECT content, x + w <= 1 FROM grading.annotations").fetchall()
        closed = connection.execute("SELECT is_active FROM grading.users WHERE username = 'zoe'").fetchall()
        holder = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND application_name = 'somebody'",
            (int(given["database-blocked"]["HOLDER"]),),
        ).fetchall()
    assert status[given["retries-exhausted"]["COPY"]] == "GRADED"
    assert status[given["finalization-failing"]["COPY"]] == "READY"
    assert status[given["lock-conflicts"]["COPY"]] == "READY"
    assert [json.dumps(row[0], sort_keys=True) for row in scores] == ['{"q1": 750, "q2": 900}'] * 3  # hundredths
    assert notes == [("Très bien", True)] * 3
    assert closed == [(True,)] and holder == [(0,)]
    assert {"restart korrigo", "restart prometheus prometheus-alertmanager"} <= set(trouble.systemd.asked)
