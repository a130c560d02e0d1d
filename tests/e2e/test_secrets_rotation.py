"""`korrigo secrets rotate` on a running instance: nobody notices, and what was stolen is worth nothing afterwards."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg

from harness.client import Client
from harness.command_line import CommandLine
from harness.instance import ROOMS, Embedded
from harness.processes import wait_for
from harness.ready import ready_copy
from korrigo.secrets_change import embedded
from korrigo_kit.auth import PeerTokens
from korrigo_kit.errors import Unauthenticated
from korrigo_kit.rpc import Channels
from korrigo_kit.settings import load


def secret(own: Embedded, name: str) -> str:
    return (own.home / "secrets" / name).read_text().strip()


@contextmanager
def under_load(own: Embedded) -> Iterator[Counter[str]]:
    """Work on the instance from four threads with the documented retry; counts what became of every call."""
    told: Counter[str] = Counter()
    stop = threading.Event()

    def work(act: Callable[[Client], object]) -> None:
        with Client(own.url, patience_seconds=20) as client:
            client.login("admin", own.admin_password)
            while not stop.is_set():
                try:
                    act(client)
                    told["good"] += 1
                except Exception as error:
                    told[f"failed: {error}"] += 1
            told["retries"] += client.retries

    acts: list[Callable[[Client], object]] = [
        lambda client: client.json("GET", "/api/me"),
        lambda client: client.create_exam("Rotation"),
        lambda client: client.items("/api/audit/events", limit=5),
        lambda client: Client(own.url, patience_seconds=20).login("admin", own.admin_password).http.close(),
    ]
    threads = [threading.Thread(target=work, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    try:
        wait_for("the load", lambda: told["good"] > 8, seconds=60)
        yield told
        seen = told["good"]
        wait_for("calls after the change", lambda: told["good"] > seen + 8, seconds=60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def accepts_peer(own: Embedded, secret_text: str) -> bool:
    """Ask grading something as a room would that signs with this secret."""
    address = f"unix:{own.home}/run/rpc-grading.sock"
    settings = load(environ={"KORRIGO_RPC__SECRET": secret_text, "KORRIGO_RPC__GRADING": address}).rpc
    PeerTokens(settings, "ingest")
    channels = Channels(settings, "ingest")
    try:
        channels.heads("grading", 0, "", ["none"])
    except Unauthenticated:
        return False
    finally:
        channels.close()
    return True


def logs_in(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=5):
            return True
    except psycopg.OperationalError:
        return False


def test_everything_is_changed_without_a_failed_request(own: Embedded, korrigo: CommandLine, tmp_path: Path) -> None:
    names = ("signing-key.pem", "rpc-secret", "postgres-password", "database-url")
    before = {name: secret(own, name) for name in names}
    dry = korrigo("secrets", "rotate", "--dry-run", "--json")
    assert set(json.loads(dry.stdout)["secrets"].values()) == {"would be changed here"}
    with Client(own.url, patience_seconds=20) as session:
        session.login("admin", own.admin_password)
        with under_load(own) as told:
            done = korrigo("secrets", "rotate", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [text for text in told if text.startswith("failed")] == [], told
        answer = json.loads(done.stdout)
        assert answer["is_good"] and {check["is_ok"] for check in answer["checks"]} == {True}
        assert {f"rpc {room}" for room in ROOMS} < {check["name"] for check in answer["checks"]}
        # each one is another now, and the old ones open nothing
        assert all(secret(own, name) != old for name, old in before.items())
        assert accepts_peer(own, secret(own, "rpc-secret")) and not accepts_peer(own, before["rpc-secret"])
        assert logs_in(secret(own, "database-url")) and not logs_in(before["database-url"])
        # who was logged in still is, and marks on: every room, its worker and the broker go on with the new secrets
        copy_id = str(ready_copy(session, tmp_path)["id"])
        lock = session.lock(copy_id)
        session.put_scores(lock, {"q1": 7.5, "q2": 9})
        session.finalize(lock)
        assert session.wait_graded(copy_id)["final_score"] == 16.5
    children = own.state()["restarts"]
    assert "api" not in children and "postgres" not in children
    with psycopg.connect(own.database_url()) as connection:
        row = connection.execute(
            "SELECT convert_from(leaf, 'UTF8')::jsonb -> 'metadata' FROM grading.outbox"
            " WHERE action = 'SECRETS_ROTATED'"
        ).fetchall()
    assert row == [({"which": ["signing-key", "rpc", "database"], "at_once": False},)]


def test_a_stolen_key_is_refused_at_once(own: Embedded, korrigo: CommandLine) -> None:
    with Client(own.url, patience_seconds=20) as session:
        session.login("admin", own.admin_password)
        assert korrigo("secrets", "rotate", "signing-key", "--at-once").returncode == 0
        refused = session.http.get("/api/me")
        assert (refused.status_code, refused.json()["reason"]) == (401, "INVALID_TOKEN")
        session.login("admin", own.admin_password)
        assert session.http.get("/api/me").status_code == 200


def test_a_change_of_passwords_cut_short_is_finished(own: Embedded, korrigo: CommandLine) -> None:
    """The files are new and the database is not, as a kill between them leaves it; first running, then at a start."""
    folder = own.home / "secrets"
    for is_started_anew in (False, True):
        old = secret(own, "postgres-password")
        new = f"a-new-password-{is_started_anew}"
        with psycopg.connect(own.database_url()) as connection:
            verifiers = embedded._verifiers(connection, own.database_url().replace(old, new), new)
        note = {"password": new, "previous": old, "verifiers": verifiers}
        (folder / "postgres-password.next").write_text(json.dumps(note))
        for name in ("postgres-password", "database-url"):
            (folder / name).write_text((folder / name).read_text().replace(old, new))
        if is_started_anew:
            assert own.stop_cleanly(seconds=60) == 0
            own.start()
        else:
            done = korrigo("secrets", "rotate", "database", "--json")
            assert done.returncode == 0, done.stdout + done.stderr
        assert not (folder / "postgres-password.next").exists()
        wait_for("every role logs in", lambda: own.get("/api/health").json()["status"] == "healthy", seconds=30)
        assert logs_in(secret(own, "database-url")) and secret(own, "postgres-password") == new


def test_a_machine_gets_a_token_that_lasts(own: Embedded, korrigo: CommandLine, tmp_path: Path) -> None:
    assert korrigo("user", "add", "alertmanager", "--role", "auditor").returncode == 0
    path = tmp_path / "token"
    done = korrigo("user", "token", "alertmanager", "--days", "300", "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text().strip() not in done.stdout
    head = {"Authorization": f"Bearer {path.read_text().strip()}"}
    assert httpx.get(f"{own.url}/api/ops/alerts", headers=head).status_code == 200
    assert httpx.get(f"{own.url}/api/users", headers=head).status_code == 403
    refused = korrigo("user", "token", "admin")
    assert refused.returncode == 4 and "NOT_A_MACHINE_ACCOUNT" in refused.stderr
    assert korrigo("sessions", "clear", "--user", "alertmanager").returncode == 0
    wait_for(
        "the token ends",
        lambda: httpx.get(f"{own.url}/api/ops/alerts", headers=head).status_code == 401,
        seconds=5,
    )
