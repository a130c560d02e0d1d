"""Management commands on a running embedded instance: each heals something that was really broken."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from harness.client import Client, Json, Lock, Refused, uuid7
from harness.command_line import CommandLine
from harness.instance import Embedded
from harness.processes import wait_for
from harness.ready import ready_copy


def marked(boss: Client, folder: Path, **exam: Any) -> tuple[str, Lock]:
    """Make a copy that is marked and held."""
    copy_id = str(ready_copy(boss, folder, **exam)["id"])
    lock = boss.lock(copy_id)
    boss.annotate(lock, content="Très bien", score_delta=0.5)
    boss.put_scores(lock, {"q1": 7.5, "q2": 9})
    return copy_id, lock


def stored(own: Embedded, sha256: str) -> Path:
    return own.home / "blobs" / "cas" / sha256[:2] / sha256


def source_of(own: Embedded, copy_id: str) -> Path:
    return stored(own, own.sql("SELECT source_sha256 FROM grading.copies WHERE id = %s", copy_id)[0][0])


def told(boss: Client, copy_id: str, action: str, **facts: object) -> Json:
    """Return the act with these facts from the audit list, once it is there."""

    def found() -> Json | None:
        acts = (event for event in boss.audit(copy_id) if event["action"] == action)
        return next((event for event in acts if facts.items() <= event["metadata"].items()), None)

    return wait_for(f"{action} {facts} in the audit list", found, seconds=20)


def test_lost_content_is_found_brought_back_and_the_copy_graded(
    korrigo: CommandLine, own: Embedded, boss: Client, tmp_path: Path
) -> None:
    copy_id, lock = marked(boss, tmp_path)
    out = tmp_path / "preview.pdf"
    made = korrigo.json("render", copy_id, "--out", str(out))
    assert out.read_bytes().startswith(b"%PDF") and made["pages"] == 3
    source = source_of(own, copy_id)
    trash = own.home / "blobs" / "trash"
    trash.mkdir(exist_ok=True)
    source.rename(trash / source.name)
    boss.finalize(lock)
    assert boss.wait_copy(copy_id, ["GRADING_FAILED"])["grading_error_message"]

    found = korrigo.json("check_data_integrity", code=9)
    assert {"BLOB_MISSING"} == {f["code"] for f in found["findings"] if f["subject"] == source.name}
    assert found["is_sound"] is False
    refused = korrigo("render", copy_id, "--out", str(out))
    assert refused.returncode == 3 and "BLOB_NOT_FOUND" in refused.stderr
    assert korrigo.json("check-data-integrity", "--fix")["is_sound"] is True
    assert source.exists()

    dry = korrigo.json("retry_failed_tasks", "--kind", "finalize", "--since", "1h", "--dry-run")
    assert [(item["id"], item["reason"]) for item in dry["items"]] == [(copy_id, "BLOB_NOT_FOUND")]
    other = korrigo.json("retry_failed_tasks", "--reason", "TIMEOUT", "--as", "admin")
    assert (other["items"], other["retried"]) == ([], 0)
    assert boss.copy(copy_id)["status"] == "GRADING_FAILED"
    class_of_it = ("--reason", "TIMEOUT", "--reason", "blob_not_found")
    assert korrigo.json("retry_failed_tasks", *class_of_it, "--as", "admin")["retried"] == 1
    assert boss.wait_graded(copy_id)["final_score"] == 17
    assert told(boss, copy_id, "FINALIZE", success=True)["actor_id"] == boss.user["id"]
    exported = korrigo.json("export", "annotations", copy_id)
    assert [a["content"] for a in exported["annotations"]] == ["Très bien"]
    assert (exported["total"], exported["status"]) == (17, "GRADED")
    # As the playbooks grep them, in the one log of all processes; each once for each time that it happened.
    general = (own.home / "logs" / "django.log").read_text().splitlines()
    for line in (
        f"Successfully imported copy {copy_id}",
        f"Starting async finalization for copy {copy_id}",
        f"PDF generation failed for copy {copy_id}",
        f"Copy {copy_id} failed 1 times - manual intervention required",
        f"Successfully finalized copy {copy_id}",
    ):
        said = [json.loads(raw) for raw in general if line in raw]
        assert said, line
        assert len(korrigo.json("logs", "grep", line)["items"]) == len(said)
    assert any('"CRITICAL"' in raw and copy_id in raw for raw in general)
    # The part that makes the document tells why, with its traceback: the playbook greps the two together.
    causes = [raw for raw in general if f"PDF generation failed for copy {copy_id}" in raw and "Traceback" in raw]
    assert causes and all("BLOB_NOT_FOUND" in raw for raw in causes)


def test_orphans_go_to_the_trash_after_two_looks_and_a_day(
    korrigo: CommandLine, own: Embedded, boss: Client, tmp_path: Path
) -> None:
    copy_id = str(ready_copy(boss, tmp_path)["id"])
    named = source_of(own, copy_id)
    orphan = stored(own, "ab" * 32)
    orphan.write_bytes(b"nobody names this")
    old = time.time() - 25 * 3600
    for path in (orphan, named):
        os.utime(path, (old, old))
    first = korrigo.json("cleanup_orphaned_files")
    assert (first["removed_count"], first["unnamed"]) == (0, 1)
    own.sql("UPDATE ingest.orphan_candidates SET first_seen_at = first_seen_at - interval '25 hours'")
    dry = korrigo.json("cleanup_orphaned_files", "--dry-run")
    assert (dry["removed_count"], dry["due"]) == (0, 1) and orphan.exists()
    # Somebody stores the same bytes again: young, so not ours to remove.
    os.utime(orphan)
    assert korrigo.json("cleanup_orphaned_files")["removed_count"] == 0
    os.utime(orphan, (old, old))
    assert korrigo.json("cleanup-orphaned-files")["removed_count"] == 1
    assert not orphan.exists() and (own.home / "blobs" / "trash" / orphan.name).exists()
    assert named.exists()
    [(written,)] = own.sql(
        "SELECT convert_from(leaf, 'UTF8')::jsonb -> 'metadata' FROM ingest.outbox WHERE action = 'ORPHANS_TRASHED'",
    )
    assert written == {"sha256": [orphan.name], "count": 1}


def test_a_silent_room_stops_the_orphan_sweep(korrigo: CommandLine, own: Embedded) -> None:
    orphan = stored(own, "cd" * 32)
    orphan.write_bytes(b"nobody names this either")
    old = time.time() - 25 * 3600
    os.utime(orphan, (old, old))
    own.sql(
        "INSERT INTO ingest.orphan_candidates VALUES (%s, clock_timestamp() - interval '2 days')"
        " ON CONFLICT (sha256) DO NOTHING",
        orphan.name,
    )
    done = korrigo("cleanup_orphaned_files", KORRIGO_RPC__RENDER=f"unix:{own.home}/run/nobody.sock")
    assert done.returncode == 7 and "render" in done.stderr
    assert orphan.exists()
    orphan.unlink()


def test_locks_end_by_force_and_by_age(korrigo: CommandLine, own: Embedded, boss: Client, tmp_path: Path) -> None:
    copy_id, _ = marked(boss, tmp_path)
    held = korrigo.json("force_unlock_copy", copy_id, "--reason", "Zoé is ill", "--dry-run")
    assert held["holder"] == "admin" and boss.copy(copy_id)["status"] == "LOCKED"
    korrigo.json("force_unlock_copy", copy_id, "--reason", "Zoé is ill", "--as", "admin")
    assert boss.copy(copy_id)["status"] == "READY"
    forced = told(boss, copy_id, "UNLOCK", reason="forced")
    assert forced["actor_id"] == boss.user["id"] and "Zoé" not in json.dumps(forced, ensure_ascii=False)
    assert korrigo("force-unlock-copy", copy_id, "--reason", "again").returncode == 3

    boss.lock(copy_id)
    own.sql("UPDATE grading.copy_locks SET expires_at = clock_timestamp() WHERE copy_id = %s", copy_id)
    korrigo.json("unlock_expired_copies")
    assert boss.copy(copy_id)["status"] == "READY"

    boss.lock(copy_id)
    ages = {"copy_locks": ("heartbeat_at", "copy_id"), "copies": ("locked_at", "id")}
    for table, (column, key) in ages.items():
        own.sql(f"UPDATE grading.{table} SET {column} = {column} - interval '3 hours' WHERE {key} = %s", copy_id)
    dry = korrigo.json("recover_stuck_copies", "--dry-run")
    assert [(item["copy_id"], item["reason"]) for item in dry["items"]] == [(copy_id, "HOLDER_SILENT")]
    assert boss.copy(copy_id)["status"] == "LOCKED"
    korrigo.json("recover_stuck_copies", "--locked-threshold", "120")
    assert boss.copy(copy_id)["status"] == "READY"

    own.sql("INSERT INTO grading.copy_locks SELECT %s, 1, %s, NULL, '', '', '', 99, 60, now(), now(), now()"
        " + interval '1 hour'", copy_id, boss.user["id"])  # fmt: skip
    found = korrigo.json("check_data_integrity", "--quick", code=9)
    assert [(f["code"], f["subject"]) for f in found["findings"]] == [("LOCK_WITHOUT_LOCKED", copy_id)]
    assert korrigo.json("check_data_integrity", "--quick", "--fix")["is_sound"] is True
    told(boss, copy_id, "UNLOCK", reason="reconciled")


def test_a_failed_import_is_done_again(korrigo: CommandLine, own: Embedded, boss: Client, tmp_path: Path) -> None:
    copy_id = str(ready_copy(boss, tmp_path)["id"])
    [(scan_id,)] = own.sql("SELECT scan_id::text FROM ingest.scan_copies WHERE copy_id = %s", copy_id)
    # As a worker leaves it that failed three times before the pages were known.
    for statement in (
        "UPDATE ingest.jobs SET state = 'QUARANTINED', attempts = 3 WHERE subject_id = %s",
        "UPDATE ingest.scans SET state = 'FAILED', error_reason = 'WORKER_LOST', finished_at = now() WHERE id = %s",
        "DELETE FROM ingest.pages WHERE scan_id = %s",
        "UPDATE ingest.scan_copies SET assembly = 0, source_sha256 = NULL WHERE scan_id = %s",
    ):
        own.sql(statement, scan_id)
    own.sql("ALTER TABLE grading.copies DISABLE TRIGGER copies_tell")
    own.sql("UPDATE grading.copies SET status = 'STAGING', assembly = 0, created_at = now() - interval '2 hours'"
        " WHERE id = %s", copy_id)  # fmt: skip
    own.sql("ALTER TABLE grading.copies ENABLE TRIGGER copies_tell")
    dry = korrigo.json("recover_stuck_copies", "--dry-run")
    assert [(item["copy_id"], item["done"]) for item in dry["items"]] == [(copy_id, "import tried again")]
    assert boss.scan(scan_id)["state"] == "FAILED"
    assert korrigo.json("recover-stuck-copies", "--staging-threshold", "60")["recovered"] == 1
    assert boss.wait_scan(scan_id)["state"] == "DONE"
    assert boss.wait_copy(copy_id, ["READY"])["pages"]
    actions = [row[0] for row in own.sql("SELECT action FROM ingest.outbox WHERE subject_id = %s", scan_id)]
    assert "RETRY" in actions


def test_a_request_lost_between_rooms_is_fetched(
    korrigo: CommandLine, own: Embedded, boss: Client, tmp_path: Path
) -> None:
    copy_id, lock = marked(boss, tmp_path)
    with own.resting():
        boss.finalize(lock)
        found = korrigo.json("recover_stuck_copies", "--in-progress-threshold", "0")
        assert [(item["copy_id"], item["reason"]) for item in found["items"]] == [(copy_id, "NOT_RENDERED")]
        assert own.sql("SELECT state FROM render.renders WHERE copy_id = %s", copy_id) == [("REQUESTED",)]
        waiting = korrigo.json("queue", "status")
        assert waiting["broker_up"] and waiting["rooms"]["render"]["jobs"]["render"]["READY"] == 1
    assert boss.wait_graded(copy_id)["final_score"] == 17


def test_read_models_come_back_from_events(korrigo: CommandLine, own: Embedded, boss: Client, tmp_path: Path) -> None:
    ready = ready_copy(boss, tmp_path)
    copy_id, exam_id = str(ready["id"]), str(ready["exam_id"])
    own.sql("DELETE FROM ingest.copy_access WHERE copy_id = %s", copy_id)
    own.sql("DELETE FROM ingest.exams WHERE exam_id = %s", exam_id)
    own.sql("DELETE FROM grading.outbox WHERE subject_id = %s", exam_id)  # as after a week
    assert korrigo.json("rebuild_index", "--dry-run")["applied"] == 0
    done = korrigo.json("rebuild_index")
    assert done["retold"] == 1 and done["applied"] >= 2
    assert own.sql("SELECT status FROM ingest.copy_access WHERE copy_id = %s", copy_id) == [("READY",)]
    assert own.sql("SELECT version FROM ingest.exams WHERE exam_id = %s", exam_id) == [(1,)]


def test_logs_and_audit_tell_one_story(korrigo: CommandLine, own: Embedded, boss: Client, tmp_path: Path) -> None:
    request_id = uuid7()
    path = tmp_path / "bad.pdf"
    path.write_bytes(b"%PDF-1.7 and nothing else")
    exam = boss.create_exam("Logs")
    scan = boss.upload(exam["id"], path, request_id=request_id)
    assert boss.wait_scan(scan["scan_id"])["state"] == "REJECTED"
    found = korrigo.json("logs", "grep", request_id)["items"]
    assert {line["request_id"] for line in found} == {request_id}
    assert [line["timestamp"] for line in found] == sorted(line["timestamp"] for line in found)
    assert any("Async PDF import failed" in line["message"] for line in found)
    general = (own.home / "logs" / "django.log").read_text()
    assert "Async PDF import failed" in general and "Rasterization failed" in general
    assert [line for line in general.splitlines() if request_id in line]
    shown = korrigo("logs", "grep", request_id, "--level", "ERROR")
    assert shown.returncode == 0 and "Async PDF import failed" in shown.stdout and "INFO" not in shown.stdout
    assert korrigo("logs", "grep", "no-line-names-this").returncode == 3

    def rows() -> list[dict[str, str]]:
        listed = korrigo("export_audit_logs", "--since=24h", "--action", "EXAM_CREATED")
        assert listed.returncode == 0, listed.stderr
        return [row for row in csv.DictReader(io.StringIO(listed.stdout)) if row["subject_id"] == exam["id"]]

    [row] = wait_for("the exam in the audit trail", rows, seconds=10)
    assert (row["actor_id"], row["source"], json.loads(row["metadata"])["version"]) == (boss.user["id"], "grading", 1)
    assert len(row["leaf_hash"]) == 64
    assert korrigo("export-audit-logs", "--since", "yesterday").returncode == 5


def test_leftovers_are_removed_by_age_only(korrigo: CommandLine, own: Embedded) -> None:
    old, young = (own.temporary / f"korrigo-ingest-1-1-{uuid7()[-8:]}" for _ in range(2))
    for folder in (old, young):
        folder.mkdir()
        (folder / "source.pdf").write_bytes(b"%PDF")
    for path in (old / "source.pdf", old):
        os.utime(path, (1, 1))
    try:
        assert str(old) in korrigo.json("cleanup_temp_files", "--dry-run")["paths"]
        assert str(old) in korrigo.json("cleanup_temp_files")["paths"]
        assert not old.exists() and young.exists()
    finally:
        (young / "source.pdf").unlink()
        young.rmdir()


def test_sessions_end_everywhere(korrigo: CommandLine, own: Embedded, boss: Client) -> None:
    boss.create_user("zoe", "a-long-password", ["marker"])
    with Client(own.url) as zoe:
        zoe.login("zoe", "a-long-password")
        assert korrigo.json("sessions", "clear", "--user", "zoe", "--dry-run")["sessions"] == 1
        assert zoe.json("GET", "/api/me")["username"] == "zoe"
        assert korrigo.json("sessions", "clear", "--user", "zoe")["accounts"] == ["zoe"]

        def is_refused() -> bool:
            try:
                zoe.json("GET", "/api/me")
            except Refused as refused:
                return refused.status == 401
            return False

        wait_for("the session to be refused", is_refused, seconds=3)
    assert korrigo("sessions", "clear", "--user", "nobody").returncode == 3
    assert korrigo("sessions", "clear", "--as", "zoe").returncode == 6
    assert boss.json("GET", "/api/me")["username"] == "admin"
