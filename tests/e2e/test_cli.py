"""The command line against a running embedded instance."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import psutil
import psycopg
import pytest

from harness.client import Client, Refused
from harness.instance import KORRIGO, Embedded
from harness.processes import NotReady, clean_environment, wait_for
from korrigo import installation

HEAVY = {"pydantic", "sqlalchemy", "psycopg", "celery", "kombu", "grpc", "fastapi", "rich", "httpx", "cryptography"}


def _json(own: Embedded, *words: str) -> dict[str, object]:
    done = own.cli(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_help_and_up_import_nothing_heavy() -> None:
    program = (
        "import sys, korrigo.cli, korrigo.commands.up\n"
        f"found = sorted({HEAVY!r} & set(sys.modules))\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    help_text = subprocess.run([KORRIGO, "--help"], capture_output=True, text=True, timeout=30, check=True).stdout
    for word in ("up", "run", "work", "migrate", "demo", "doctor", "config", "user", "audit", "version"):
        assert f"\n  {word} " in help_text


@pytest.mark.parametrize("words", ["up", "run", "work", "migrate", "demo", "doctor", "config show", "user add",
                                   "user passwd", "user list", "audit verify", "version"])  # fmt: skip
def test_every_help_has_an_example(words: str) -> None:
    done = subprocess.run([KORRIGO, *words.split(), "--help"], capture_output=True, text=True, timeout=30, check=True)
    assert f"Example: korrigo {words}" in " ".join(done.stdout.split()).replace("KORRIGO_HTTP__PORT=0 ", "")


def test_the_supervisor_is_small(own: Embedded) -> None:
    resident = psutil.Process(own.up.pid).memory_info().rss
    print(f"supervisor {resident >> 20} MB; the whole {own.resident_bytes() >> 20} MB")
    assert resident < 45 << 20
    assert own.resident_bytes() < 900 << 20


def test_accounts_from_the_command_line(own: Embedded) -> None:
    made = _json(own, "user", "add", "zoe", "--role", "marker")
    assert made["roles"] == ["marker"]
    with Client(own.url) as client:
        client.login("zoe", str(made["password"]))
    changed = _json(own, "user", "passwd", "zoe")
    with Client(own.url) as client, pytest.raises(Refused) as refused:
        client.login("zoe", str(made["password"]))
    assert refused.value.status == 401
    with Client(own.url) as client:
        client.login("zoe", str(changed["password"]))
    listed = _json(own, "user", "list")["items"]
    assert isinstance(listed, list) and {item["username"] for item in listed} >= {"admin", "zoe"}
    again = own.cli("user", "add", "zoe", "--role", "marker")
    assert again.returncode == 4 and "USERNAME_TAKEN" in again.stderr
    dry = own.cli("user", "add", "dry", "--role", "marker", "--dry-run")
    assert dry.returncode == 0
    assert "dry" not in own.cli("user", "list").stdout


def test_doctor_audit_and_migrate_find_a_healthy_instance(own: Embedded) -> None:
    checks = {check["name"]: check["is_ok"] for check in _json(own, "doctor")["checks"]}  # type: ignore[attr-defined]
    assert {name: checks[name] for name in ("home", "postgres", "settings", "running", "database", "health")} == {
        "home": True, "postgres": True, "settings": True, "running": True, "database": True, "health": True,
    }  # fmt: skip
    assert _json(own, "audit", "verify")["is_valid"] is True
    assert _json(own, "migrate")["moved"] == []
    # Its secrets and rights are fit for real exams; that the backups lie beside the data is not.
    fitness = own.cli("doctor", "--deploy", "--json")
    checks = {check["name"]: check["is_ok"] for check in json.loads(fitness.stdout)["checks"]}
    assert {name: checks[name] for name in ("address", "secrets", "transport", "debugging", "rights", "backups")} == {
        "address": None, "secrets": True, "transport": True, "debugging": True, "rights": True, "backups": False,
    }, fitness.stdout  # fmt: skip
    assert fitness.returncode == 9


def test_a_release_that_changes_views_only_installs_them_at_its_start(own: Embedded) -> None:
    """As a release finds it whose views have a column more: no schema is behind, and `up` migrates all the same."""
    with psycopg.connect(own.database_url(), autocommit=True) as connection:
        connection.execute("DROP VIEW playbook.auth_user")
        connection.execute("CREATE VIEW playbook.auth_user AS SELECT email, id FROM grading.users")
        connection.execute("COMMENT ON SCHEMA playbook IS 'of another release'")
    assert own.stop_cleanly() == 0
    own.start()
    with psycopg.connect(own.database_url(), autocommit=True) as connection:
        names = connection.execute("SELECT username FROM playbook.auth_user WHERE last_login IS NOT NULL").fetchall()
        granted = "SELECT has_table_privilege('korrigo_support', 'playbook.auth_user', 'SELECT')"
        assert names and connection.execute(granted).fetchone() == (True,)
        # and the next start has nothing to do
        noted = connection.execute(f"SELECT {installation.FINGERPRINT_SQL}".encode()).fetchone()
        assert noted == (installation.fingerprint(),)
    assert _json(own, "migrate")["moved"] == []


def test_the_audit_log_is_a_file_of_its_own_and_the_playbooks_find_the_general_one(own: Embedded) -> None:
    logs = own.home / "logs"

    def lines() -> list[dict[str, object]]:
        file = logs / "audit.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    wait_for("a line of the audit log", lines, seconds=30)
    for line in lines():
        assert {"action", "actor_id", "event_id", "source", "request_id"} <= line.keys()
        assert (line["logger"], line["level"]) == ("audit", "INFO") and line["action"]
    assert '"logger":"audit"' not in (logs / "worker.log").read_text()
    # The general log has every process in it, the audit trail not; a link of an older home is gone.
    general = logs / "django.log"
    assert general.is_file() and not general.is_symlink()
    services = {json.loads(line)["service"] for line in general.read_text().splitlines()}
    assert {"api", "relay", "sweeper", "worker", "migrate"} <= services, services
    assert '"logger":"audit"' not in general.read_text()


def test_config_show_names_origins_and_masks_secrets(own: Embedded) -> None:
    shown = own.cli("config", "show")
    assert shown.returncode == 0, shown.stderr
    secret = (own.home / "secrets" / "rpc-secret").read_text().strip()
    assert secret not in shown.stdout
    lines = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "***" in lines["KORRIGO_RPC__SECRET"] and "(file)" in lines["KORRIGO_RPC__SECRET"]
    assert "(" not in lines["KORRIGO_JOBS__LEASE_SECONDS"]


def test_doctor_without_an_instance_does_not_pretend(fresh: Embedded) -> None:
    done = fresh.cli("doctor", "--json")
    checks = {check["name"]: check["is_ok"] for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert checks["running"] is None and checks["health"] is None
    refused = fresh.cli("user", "list")
    assert refused.returncode == 7 and "NOT_SET_UP" in refused.stderr


def test_a_busy_port_is_named(fresh: Embedded) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        fresh.extra_env["KORRIGO_HTTP__PORT"] = str(taken.getsockname()[1])
        with pytest.raises(NotReady, match="PORT_IN_USE"):
            fresh.start()


def test_a_wrong_word_is_refused() -> None:
    done = subprocess.run(
        [KORRIGO, "run", "kitchen"], env=clean_environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 5
    assert "kitchen" in done.stderr
