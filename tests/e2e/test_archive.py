"""`korrigo archive_old_exams`, `audit export`, `audit backfill`: what leaves is in the archive, and gone elsewhere."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from harness.client import Client, Json
from harness.command_line import CommandLine
from harness.instance import KORRIGO, Embedded
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for

WORDS = "Très bien Zélie"
APPRECIATION = "Un travail de Zélie"


@dataclass(frozen=True)
class Graded:
    """An exam with one graded copy, and what it left in the store."""

    exam_id: str
    scan_id: str
    copy_id: str
    final: bytes


def graded(boss: Client, path: Path, date: str) -> Graded:
    exam = boss.create_exam(f"Exam of {date}", questions={"q1": 20})
    boss.json("PATCH", f"/api/exams/{exam['id']}", json={"date": date})
    scan = boss.wait_scan(boss.upload(exam["id"], path)["scan_id"])
    copy_id = boss.wait_copy(scan["copy_ids"][0], ["READY"], seconds=30)["id"]
    lock = boss.lock(copy_id)
    boss.annotate(lock, content=WORDS)
    boss.put_scores(lock, {"q1": 13.5}, appreciation=APPRECIATION)
    boss.finalize(lock)
    boss.wait_graded(copy_id)
    return Graded(exam["id"], scan["id"], copy_id, boss.send("GET", f"/api/copies/{copy_id}/final-pdf").content)


def stored(own: Embedded) -> set[str]:
    return {path.name for path in (own.home / "blobs").rglob("*") if path.is_file()}


@dataclass(frozen=True)
class World:
    """Two old exams, the second with the bytes of the first; one of this year with them as well; one unfinished."""

    first: Graded
    second: Graded
    young: Graded
    upload_sha256: str


@pytest.fixture(scope="module")
def world(boss: Client, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("scans")
    same = a4_scan(folder / "ZAMPANO_Zélie.pdf", [Label(1, 1, page) for page in (1, 2)])
    other = a4_scan(folder / "other.pdf", [Label(2, 1, page) for page in (1, 2)])
    return World(
        graded(boss, other, "2025-05-20"),
        graded(boss, same, "2025-06-01"),
        graded(boss, same, "2026-01-12"),
        hashlib.sha256(same.read_bytes()).hexdigest(),
    )


HALF = """
import sys, pathlib, datetime
from korrigo.operating import operation, Progress
from korrigo.exam_archive import leaving, file
from korrigo_grading.flows import archiving
with operation("ingest", "grading", "render", "audit") as at:
    exams = leaving.finished(at, datetime.date(2025, 1, 1), datetime.date(2025, 12, 31), skip_unfinished=True)
    made = leaving.export(at, exams, pathlib.Path(sys.argv[1]), Progress())
    if sys.argv[2] == "half":
        exam_id, exam = next(iter(made.exams.items()))
        assert archiving.purge(at["grading"], exam_id, fingerprint=exam.fingerprint, archive_sha256=made.sha256,
                               event_ids=exam.event_ids, actor_id=at.actor_id)
"""


def half(own: Embedded, path: Path, how: str) -> None:
    """Do what a run does that is killed after its export, or after the first step of the first exam."""
    words = [sys.executable, "-c", HALF, str(path), how]
    done = subprocess.run(words, env=own.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_unfinished_or_damaged_destroys_nothing(
    own: Embedded, boss: Client, korrigo: CommandLine, world: World, tmp_path: Path
) -> None:
    before = stored(own)
    path = tmp_path / "2025.tar.gz"
    waiting = boss.create_exam("Waiting")
    boss.json("PATCH", f"/api/exams/{waiting['id']}", json={"date": "2025-03-01"})
    scan = boss.upload(waiting["id"], a4_scan(tmp_path / "w.pdf", [Label(9, 1, 1)]))
    words = ("archive_old_exams", "--year", "2025", "--export", str(path))
    refused = korrigo(*words)
    assert refused.returncode == 4 and "EXAM_NOT_FINISHED" in refused.stderr
    boss.wait_scan(scan["scan_id"])
    assert korrigo(*words).returncode == 4 and not path.exists()
    dry = korrigo.json(*words, "--skip-unfinished", "--dry-run")
    assert [item["id"] for item in dry["items"]] == [world.first.exam_id, world.second.exam_id]
    assert korrigo("archive_old_exams", "--year", "2099", "--export", str(path)).returncode == 5
    assert korrigo.json("archive-old-exams", "--older-than", "9000d", "--export", str(path))["archived"] == 0
    half(own, path, "export")
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        damaged = korrigo(*words, "--skip-unfinished")
        assert damaged.returncode == 5 and "ARCHIVE_DAMAGED" in damaged.stderr
    path.write_bytes(whole[: len(whole) // 2])
    assert korrigo(*words, "--skip-unfinished").returncode == 5
    assert stored(own) >= before and boss.copy(world.first.copy_id)["final_score"] == 13.5
    # what changed since it was exported is not destroyed on the strength of that export
    path.write_bytes(whole)
    boss.json("POST", f"/api/copies/{world.first.copy_id}/reopen", json={"reason": "again"})
    assert korrigo(*words, "--skip-unfinished").returncode == 4
    lock = boss.lock(world.first.copy_id)
    boss.finalize(lock)
    boss.wait_graded(world.first.copy_id)
    changed = korrigo(*words, "--skip-unfinished")
    assert changed.returncode == 4 and "EXAM_CHANGED" in changed.stderr
    assert len(boss.annotations(world.first.copy_id)) == 1


def test_a_run_cut_short_goes_on_and_leaves_the_archive_alone(
    own: Embedded, boss: Client, korrigo: CommandLine, world: World, tmp_path: Path
) -> None:
    path = tmp_path / "2025.tar.gz"
    words = ("archive_old_exams", "--year=2025", f"--export={path}", "--skip-unfinished", "--as", "admin")
    half(own, path, "half")
    archive = path.read_bytes()
    # killed once more wherever it is; then to the end, and once more for nothing
    with subprocess.Popen([str(KORRIGO), *words], env=own.env, stdout=subprocess.DEVNULL) as process:
        wait_for(
            "its first act",
            lambda: _is_nameless(own, world) or process.poll() is not None,
            seconds=60,
            every_seconds=0.01,
        )
        process.send_signal(signal.SIGKILL)
    done = korrigo.json(*words)
    assert done["resumed"] is True and {item["id"] for item in done["items"]} == {
        world.first.exam_id, world.second.exam_id
    }  # fmt: skip
    assert korrigo.json(*words)["archived"] == 0
    assert path.read_bytes() == archive and done["sha256"] == hashlib.sha256(archive).hexdigest()
    _is_in_the_archive(path, world)
    _is_gone(own, boss, world)
    # the bytes that another exam holds too are there for it
    assert boss.send("GET", f"/api/copies/{world.young.copy_id}/final-pdf").content == world.young.final
    assert world.upload_sha256 in stored(own)
    assert korrigo.json("check_data_integrity")["is_sound"] is True
    assert korrigo("audit", "verify").returncode == 0
    # a new run into the same file would destroy the old one
    boss.json("PATCH", f"/api/exams/{world.young.exam_id}", json={"date": "2025-07-01"})
    refused = korrigo(*words)
    assert refused.returncode == 4 and "EXPORT_EXISTS" in refused.stderr and path.read_bytes() == archive


def _is_nameless(own: Embedded, world: World) -> bool:
    ids = [world.first.scan_id, world.second.scan_id]
    return bool(own.sql("SELECT 1 FROM ingest.scans WHERE id = ANY(%s::uuid[]) AND filename = ''", ids))


def _is_in_the_archive(path: Path, world: World) -> None:
    with tarfile.open(path) as archive:
        members = {member.name: file.read() for member in archive if (file := archive.extractfile(member))}
    manifest = json.loads(members["manifest.json"])
    assert manifest["sha256"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in members.items() if name != "manifest.json"
    }
    root = f"exams/{world.second.exam_id}"
    assert members[f"{root}/finals/{world.second.copy_id}-r1.pdf"] == world.second.final
    copy = json.loads(members[f"{root}/copies/{world.second.copy_id}.json"])
    assert [one["content"] for one in copy["annotations"]] == [WORDS]
    assert copy["scores"][0]["appreciation"] == APPRECIATION
    table = members[f"{root}/copies.csv"].decode()
    assert f"{world.second.copy_id}," in table and ",13.50," in table
    assert json.loads(members[f"{root}/exam.json"])["grading_structure"][0]["id"] == "q1"
    records = [json.loads(line) for line in members[f"{root}/events.jsonl"].splitlines()]
    check_leaves(records)
    assert {"IMPORT", "FINALIZE", "CREATE_ANN"} <= {record["action"] for record in records}
    # the reopened copy has both of its final PDFs
    assert {f"exams/{world.first.exam_id}/finals/{world.first.copy_id}-r{n}.pdf" for n in (1, 2)} <= set(members)


def check_leaves(records: list[Json]) -> None:
    """Check hashes and numbers as anybody can who has the export only."""
    last: dict[tuple[str, str, str], int] = {}
    for record in records:
        assert hashlib.sha256(b"\0" + record["leaf"].encode()).hexdigest() == record["leaf_hash"]
        stream = (record["subject_type"], record["subject_id"], record["source"])
        assert record["source_seq"] == last.get(stream, 0) + 1, stream
        last[stream] = record["source_seq"]
    assert last


def _is_gone(own: Embedded, boss: Client, world: World) -> None:
    rooms = ("ingest", "grading", "render")
    named = {row[0] for room in rooms for row in own.sql(f"SELECT sha256 FROM {room}.blob_refs")}
    assert stored(own) <= named, "content is there that nobody names"
    for one in (world.first, world.second):
        for path in (f"/api/exams/{one.exam_id}", f"/api/copies/{one.copy_id}", f"/api/copies/{one.copy_id}/final-pdf"):
            assert boss.http.get(path).status_code == 404, path
        ids = [one.copy_id]
        for table in ("annotations", "scores"):
            assert own.sql(f"SELECT 1 FROM grading.{table} WHERE copy_id = ANY(%s::uuid[])", ids) == []
        copy = own.sql("SELECT status, final_score FROM grading.copies WHERE id = %s", one.copy_id)
        assert copy == [("GRADED", None)]
        assert own.sql("SELECT filename FROM ingest.scans WHERE id = %s", one.scan_id) == [("",)]
        assert boss.audit(one.copy_id)[0]["action"] == "IMPORT"
        _wait_told(boss, one.copy_id)
    acts = "SELECT actor_id FROM audit.records WHERE action = 'ARCHIVE' AND subject_id = %s"
    actors = own.sql(acts, world.second.copy_id)
    assert actors == [(boss.user["id"],)]
    reason = own.sql(
        "SELECT 1 FROM grading.event_texts t JOIN audit.records r ON r.id = t.event_id WHERE r.subject_id = %s",
        world.first.copy_id,
    )
    assert reason == [], "the reason of the reopening is a text"


def _wait_told(boss: Client, copy_id: str) -> None:
    wait_for("ARCHIVE", lambda: "ARCHIVE" in [event["action"] for event in boss.audit(copy_id)], seconds=20)


def test_the_trail_is_taken_out_whole(korrigo: CommandLine, world: World, tmp_path: Path) -> None:
    out = tmp_path / "trail.jsonl"
    made = korrigo.json("audit", "export", "--out", str(out))
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert made["records"] == len(records) > 20 and out.stat().st_mode & 0o777 == 0o600
    check_leaves(records)
    one = korrigo("audit", "export", "--copy", world.young.copy_id)
    found = [json.loads(line) for line in one.stdout.splitlines()]
    assert {record["subject_id"] for record in found} == {world.young.copy_id}
    check_leaves(found)


def test_an_act_that_nobody_told_is_told_afterwards(
    own: Embedded, boss: Client, korrigo: CommandLine, world: World
) -> None:
    copy_id = world.young.copy_id
    words = ("audit", "backfill", copy_id, "VALIDATE", "--reason", "lost, says Zélie", "--as", "admin")
    refused = korrigo(*words)
    assert refused.returncode == 4 and "EVENT_NOT_MISSING" in refused.stderr
    # gone from the trail and from the room that wrote it, as no flow would do
    with psycopg.connect(own.database_url()) as connection:
        connection.execute("ALTER TABLE audit.records DISABLE TRIGGER records_keep")
        connection.execute("DELETE FROM audit.records WHERE subject_id = %s AND action = 'VALIDATE'", (copy_id,))
        connection.execute("ALTER TABLE audit.records ENABLE TRIGGER records_keep")
        connection.execute("DELETE FROM grading.outbox WHERE subject_id = %s AND action = 'VALIDATE'", (copy_id,))
    assert korrigo("audit", "backfill", copy_id, "VALIDATE", "--reason", "x", "--as", "nobody").returncode == 3
    assert korrigo.json(*words, "--dry-run")["status"] == "GRADED"
    assert "VALIDATE" not in [event["action"] for event in boss.audit(copy_id)]
    korrigo.json(*words)
    told = wait_for(
        "the act",
        lambda: next((event for event in boss.audit(copy_id) if event["action"] == "VALIDATE"), None),
        seconds=20,
    )
    assert told["actor_id"] == boss.user["id"] and told["metadata"]["backfilled"] is True
    assert "reason_commitment" in told["metadata"] and "Zélie" not in json.dumps(told)
    assert korrigo(*words).returncode == 4
