"""What the tests of backup, upgrade and rollback share: an exam in every state, and what a database holds.

`populate` leaves behind what people leave behind: graded copies (all of them in the ledger, for the checker), one that
is READY and one under a lock. `tables` digests every table; two systems with equal digests hold the same.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from harness.client import Client, Lock
from harness.instance import Embedded
from harness.ledger import Ledger
from harness.pdfs import a4_booklets
from harness.story import Marker

QUESTIONS = {"q1": 8.0, "q2": 12.0}
# What a restore ends or begins anew by design, and what is no content.
VOLATILE_TABLES = (
    "heartbeats", "inbox_looks", "sessions", "revoked_sessions", "login_attempts", "switches", "copy_locks",
    "alembic_version",
)  # fmt: skip
VOLATILE_COLUMNS = frozenset({"fence", "sent_at", "rung_at", "rings"})
Columns = Mapping[str, Collection[str]]

_WITH_SERVER = """
import sys
from pathlib import Path
from korrigo.backup import servers
from korrigo.home import Home
home = Home(Path(sys.argv[1]))
lock = home.lock()
with servers.owned(home) as settings:
    print(settings.database.url.get_secret_value(), flush=True)
    sys.stdin.readline()
"""


@dataclass
class Populated:
    """What was made: the exam, the SHA-256 of each final PDF, the copies nobody has finished, what was acknowledged."""

    exam: dict[str, Any]
    finals: dict[str, str]
    ready: str
    locked: Lock
    ledger: Ledger


def populate(client: Client, folder: Path, *, graded: int, seed: int) -> Populated:
    """Mark `graded` copies to the end and leave two more, READY and LOCKED; waits until the audit knows it all."""
    exam = client.create_exam("Backed up", pages_per_booklet=1, questions=QUESTIONS)
    ledger = Ledger()
    path = a4_booklets(folder / "graded.pdf", document=77, booklets=graded, pages=1)
    answer = client.upload(exam["id"], path)
    ledger.uploaded(answer, exam["id"], path, pages=graded, copies=graded, is_a3=False)
    copy_ids = client.wait_scan(answer["scan_id"], seconds=60 + 2 * graded)["copy_ids"]
    marker = Marker(client, ledger, random.Random(seed))
    for copy_id in copy_ids:
        marker.mark(client.wait_copy(copy_id, ["READY"], seconds=60), QUESTIONS, annotations=2)
    rest = client.create_exam("Under way", pages_per_booklet=1, questions=QUESTIONS)
    pair = a4_booklets(folder / "rest.pdf", document=78, booklets=2, pages=1)
    ready, locked_id = client.wait_scan(client.upload(rest["id"], pair)["scan_id"])["copy_ids"]
    for copy_id in copy_ids:
        client.wait_graded(copy_id)
        client.wait_audit(copy_id, "FINALIZE")
    for copy_id in (ready, locked_id):
        client.wait_copy(copy_id, ["READY"], seconds=60)
        client.wait_audit(copy_id, "VALIDATE")
    lock = client.lock(locked_id)
    client.annotate(lock, content="under lock")
    client.wait_audit(locked_id, "CREATE_ANN")
    return Populated(exam, {copy_id: final_sha256(client, copy_id) for copy_id in copy_ids}, ready, lock, ledger)


def final_sha256(client: Client, copy_id: str) -> str:
    """Fetch a final PDF and return its SHA-256."""
    return hashlib.sha256(client.final_pdf(copy_id).content).hexdigest()


def columns(url: str) -> dict[str, list[str]]:
    """List the columns of every table of every room that hold content."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT table_schema, table_name, column_name FROM information_schema.columns"
            " JOIN information_schema.tables USING (table_schema, table_name) WHERE table_type = 'BASE TABLE'"
            " AND table_schema IN ('ingest', 'grading', 'render', 'audit') ORDER BY 1, 2, 3"
        ).fetchall()
    for schema, table, column in rows:
        if table not in VOLATILE_TABLES and column not in VOLATILE_COLUMNS:
            found.setdefault(f"{schema}.{table}", []).append(column)
    return found


def tables(url: str, only: Columns | None = None) -> dict[str, str]:
    """Digest the content of every table, or of these columns.

    Without the installation's own stream and accounts: a release may add to them.
    """
    found = {}
    wanted = columns(url) if only is None else only
    with psycopg.connect(url) as connection:
        for table, names in wanted.items():
            row = ", ".join(f't."{name}"' for name in names)
            answer = connection.execute(
                "SELECT count(*), md5(coalesce(string_agg(r, '|' ORDER BY r), '')) FROM (SELECT to_jsonb(rows)::text"
                f" AS r FROM (SELECT {row} FROM {table} t WHERE to_jsonb(t)->>'subject_type' IS DISTINCT FROM 'system'"
                " AND to_jsonb(t)->>'is_system' IS DISTINCT FROM 'true') rows) texts".encode()
            ).fetchone()
            assert answer is not None
            found[table] = f"{answer[0]}:{answer[1]}"
    return found


def stopped_tables(instance: Embedded, only: Columns | None = None) -> dict[str, str]:
    """Digest a home whose product is stopped."""
    with subprocess.Popen(
        [sys.executable, "-c", _WITH_SERVER, str(instance.home)],
        env=instance.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        found = tables(process.stdout.readline().strip(), only)
        process.stdin.close()
    return found
