"""An incident on a running instance: from the alert to the closed report, evidence without a name, isolation."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness.client import Client, Json
from harness.command_line import CommandLine
from harness.instance import Embedded
from harness.processes import wait_for
from harness.ready import ready_copy
from korrigo.backup import trial

# Names that a bundle must not hold, wherever they were typed.
TEACHER, EMAIL, EXAM, PUPIL = "Odile-Quatremer", "odile.q@lycee.example", "Baccalauréat blanc de Zélie", "ZAMPANO_Zélie"


def notify(boss: Client, name: str, start: datetime, end: datetime | None = None) -> None:
    """Tell of an alert as Alertmanager does."""
    alert = {
        "status": "resolved" if end else "firing", "startsAt": start.isoformat(), "fingerprint": name.lower(),
        "endsAt": end.isoformat() if end else "0001-01-01T00:00:00Z",
        "labels": {"alertname": name, "severity": "critical", "priority": "P0", "scenario": "broker"},
        "annotations": {"summary": "Nobody works", "runbook_url": "https://korrigo.example.org/workers-down"},
    }  # fmt: skip
    body = {"version": "4", "groupKey": name, "status": alert["status"], "groupLabels": {}, "alerts": [alert]}
    boss.json("POST", "/api/ops/alerts", json=body)


def test_from_the_alert_to_the_closed_report(own: Embedded, korrigo: CommandLine, boss: Client) -> None:
    start = datetime.now(UTC) - timedelta(minutes=16)
    missing = korrigo("incident", "new", "--alert", "WorkersDown")
    assert missing.returncode == 3 and "ALERT_NOT_FOUND" in missing.stderr
    notify(boss, "WorkersDown", start)
    assert korrigo.json("incident", "new", "--dry-run")["alertname"] == "WorkersDown"
    assert korrigo.json("incident", "list")["items"] == []
    begun = korrigo.json("incident", "new", "--alert", "WorkersDown")
    assert (begun["priority"], begun["level"], begun["severity"]) == ("P0", 3, "critical")
    assert begun["id"] == f"{start:%Y-%m-%d-%H-%M}-workers-down" and begun["unasked"] == []
    # the same alerts are the same incident, whoever asks again
    assert korrigo.json("incident", "new")["id"] == begun["id"]

    korrigo.json("queue", "status")
    korrigo.json("read-only", "on")
    korrigo.json("read-only", "off")
    korrigo.json("unlock_expired_copies")
    refused = korrigo("incident", "close", "latest", "--cause", "the disk was full")
    assert refused.returncode == 4 and "ALERT_STILL_FIRING" in refused.stderr
    notify(boss, "WorkersDown", start, datetime.now(UTC))

    def told() -> Json | None:
        """Audit has heard of the switch."""
        found = korrigo.json("incident", "show", "latest")
        texts = [entry["text"] for entry in found["timeline"] if entry["kind"] == "act"]
        return found if any(text.startswith("READ_ONLY (off)") for text in texts) else None

    shown = wait_for("the acts in the timeline", told, seconds=30)
    lines = [f"{entry['kind']} {entry['text']}" for entry in shown["timeline"]]
    assert [line for line in lines if line.startswith("alert")] == ["alert WorkersDown: Nobody works"]
    assert any(line.startswith("command queue status --json (exit 0") for line in lines)
    assert shown["ended_at"] is not None
    closed = korrigo.json(
        "incident", "close", "latest", "--cause", "the disk was full", "--action", "a larger disk",
        "--lesson", "watch it",
    )  # fmt: skip
    text = Path(closed["report"]).read_text()
    for part in (
        f"# Incident Report - [{start:%Y-%m-%d-%H:%M}]", "Alert detected (WorkersDown)",
        "Fix applied (unlock_expired_copies", "the disk was full", "- [ ] a larger disk", "- watch it",
        "https://korrigo.example.org/workers-down",
    ):  # fmt: skip
        assert part in text, text
    french = korrigo("incident", "show", closed["id"], "--lang", "fr")
    assert french.returncode == 0 and "Alerte détectée (WorkersDown)" in french.stdout, french.stderr
    assert korrigo("incident", "show", closed["id"], "--lang", "de").returncode == 5
    assert korrigo.json("incident", "list", "--open")["items"] == []
    assert [one["status"] for one in korrigo.json("incident", "list")["items"]] == ["closed"]
    assert korrigo("incident", "close", closed["id"]).returncode == 4


def names_and_secrets(own: Embedded) -> dict[str, str]:
    """Return everything that must not leave: what was typed, and every secret of the home, line by line."""
    found = {word: word for word in (TEACHER, EMAIL, EXAM, PUPIL, own.admin_password)}
    files = [*(own.home / "secrets").glob("*"), own.home / "admin-password"]
    for path in files:
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if not line.startswith("-----")]
            found |= {line: path.name for line in lines if line}
    url = (own.home / "secrets" / "database-url").read_text()
    found[url.split(":")[2].split("@")[0]] = "password of the database"
    for pid in own.children().values():
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.decode(errors="replace").partition("=")
            if name.endswith(("__URL", "__SECRET", "__SIGNING_KEY")) and "PASSWORD" not in name and "@" in value:
                found[value] = name
    return found


def test_the_evidence_holds_what_helps_and_no_name_and_no_secret(
    own: Embedded, korrigo: CommandLine, boss: Client, tmp_path: Path
) -> None:
    boss.json("POST", "/api/users", json={
        "username": TEACHER, "password": "long-enough-1", "roles": ["marker"], "email": EMAIL,
    })  # fmt: skip
    exam = boss.create_exam(EXAM)
    scan = tmp_path / f"{PUPIL}.pdf"
    scan.write_bytes(b"%PDF-1.7 no more than this")
    boss.json("POST", "/api/scans", params={"exam_id": exam["id"]}, expect=(202, 422), files={
        "file": (scan.name, scan.read_bytes(), "application/pdf"),
    })  # fmt: skip
    copy_id = str(ready_copy(boss, tmp_path)["id"])
    # a name that got into a log all the same
    with (own.home / "logs" / "api.log").open("a") as log:
        line = {"timestamp": datetime.now(UTC).isoformat(), "level": "ERROR", "secret_field": "x"}
        line["message"] = f"{TEACHER.upper()} wrote to {EMAIL}"
        log.write(json.dumps(line) + "\n" + f"not json: {PUPIL}\n")
    made = korrigo.json("incident", "snapshot", "--since", "1h", "--to", str(tmp_path / "bundle.tar.gz"))
    assert made["missing"] == {} and made["knows_names"] is True
    path = Path(made["path"])
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as bundle:
        texts = {
            member.name.partition("/")[2]: file.read().decode()
            for member in bundle
            if (file := bundle.extractfile(member)) is not None
        }
    whole = "\n".join(texts.values()).casefold()
    found = {what for word, what in names_and_secrets(own).items() if word.casefold() in whole}
    assert found == set()
    # and yet it tells what is needed
    assert {"config.json", "metrics.txt", "doctor.json", "scenarios.json", "stuck.json", "alerts.json"} <= set(texts)
    assert json.loads(texts["config.json"])["KORRIGO_DATABASE__URL"]["value"] == "***"
    assert "grading_copies_by_status" in texts["metrics.txt"] and copy_id in texts["audit.jsonl"]
    assert json.loads(texts["versions.json"])["schemas"]["grading"] == trial.heads()["grading"]
    assert json.loads(texts["alerts.json"])[0]["alerts"][0]["labels"]["alertname"] == "WorkersDown"
    assert json.loads(texts["doctor.json"])["answer"]["checks"]
    assert "*** wrote to ***" in texts["logs/api.jsonl"] and "secret_field" not in texts["logs/api.jsonl"]
    assert copy_id in "".join(text for name, text in texts.items() if name.startswith("logs/"))


def test_isolation_keeps_evidence_refuses_changes_and_ends_sessions(own: Embedded, korrigo: CommandLine) -> None:
    with Client(own.url, patience_seconds=20) as someone:
        someone.login("admin", own.admin_password)
        begun = korrigo.json("incident", "new", "--title", "Somebody got in", "--priority", "P0")
        dry = korrigo.json("incident", "isolate", "--dry-run")
        assert dry["sessions"] >= 1 and dry["was_read_only"] is False
        assert someone.http.get("/api/me").status_code == 200
        done = korrigo.json("incident", "isolate")
        assert done["sessions"] == dry["sessions"] and Path(done["evidence"]).exists()
        wait_for("the session ends", lambda: someone.http.get("/api/me").status_code == 401, seconds=5)
        someone.login("admin", own.admin_password)
        answer = someone.http.post("/api/exams", json={})
        assert (answer.status_code, answer.json()["reason"]) == (503, "READ_ONLY")
        notify(someone, "BrokerDown", datetime.now(UTC))
        assert korrigo.json("incident", "isolate", "--no-evidence")["was_read_only"] is True
        assert korrigo.json("incident", "isolate", "--end")["was_read_only"] is True
        assert korrigo.json("incident", "isolate", "--end")["was_read_only"] is False
        someone.login("admin", own.admin_password)
        wait_for("changes", lambda: someone.http.post("/api/exams", json={}).status_code == 422, seconds=5)
    shown = korrigo.json("incident", "show", begun["id"])
    assert [done["evidence"] in text for text in shown["snapshots"]] == [True]
    rows = own.sql(
        "SELECT action, convert_from(leaf, 'UTF8')::jsonb -> 'metadata' ->> 'evidence_sha256' FROM grading.outbox"
        " WHERE action IN ('ISOLATED', 'ISOLATION_ENDED') ORDER BY source_seq"
    )
    assert [row[0] for row in rows] == ["ISOLATED", "ISOLATED", "ISOLATION_ENDED"]
    assert rows[0][1] in shown["snapshots"][0] and rows[1][1] == ""


def test_an_incident_begins_and_keeps_evidence_while_everything_is_down(own: Embedded, korrigo: CommandLine) -> None:
    assert own.stop_cleanly(seconds=60) == 0
    begun = korrigo.json("incident", "new", "--title", "Nothing answers", "--priority", "P0", "--since", "20m")
    assert begun["level"] == 3 and begun["unasked"] != []
    made = korrigo.json("incident", "snapshot")
    assert made["knows_names"] is False and {"metrics.txt", "alerts.json", "audit.jsonl"} <= set(made["missing"])
    assert {"config.json", "logs/api.jsonl", "doctor.json", "machine.json"} <= set(made["parts"])
    assert korrigo("incident", "close", begun["id"], "--cause", "a power cut").returncode == 0
    assert "a power cut" in Path(begun["report"]).read_text()
