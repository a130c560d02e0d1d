"""The embedded supervisor seen from outside: starts, deaths, stops, two homes."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import httpx
import psutil
import pytest

from harness.client import Client, Refused
from harness.instance import Embedded
from harness.pdfs import Label, a4_scan
from harness.processes import NotReady, descendants, is_alive, kill_hard, wait_for

CHILDREN = ("postgres", "api", "relay", "sweeper", "worker")


def _log_in(instance: Embedded) -> Client:
    return Client(instance.url, patience_seconds=30).login("admin", instance.admin_password)


def _import_one(client: Client, folder: Path, number: int) -> str:
    exam = client.create_exam(f"P{number}")
    scan = client.upload(exam["id"], a4_scan(folder / f"{number}.pdf", [Label(number, 1, 1)]))
    found = client.wait_scan(scan["scan_id"], seconds=120)
    assert found["state"] == "DONE", found
    return str(found["copy_ids"][0])


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_child_comes_back_and_work_goes_on(own: Embedded, tmp_path: Path, name: str) -> None:
    before = wait_for(f"child {name}", lambda: own.children().get(name), seconds=30)
    assert kill_hard(before)

    def replaced() -> bool:
        now = own.children().get(name)
        return now is not None and now != before

    wait_for(f"a new {name}", replaced, seconds=30)
    own.wait_ready(60)
    with _log_in(own) as client:
        copy_id = _import_one(client, tmp_path, 20 + CHILDREN.index(name))
        client.wait_copy(copy_id, ["READY"], seconds=60)


def test_a_killed_pool_child_costs_nothing(own: Embedded, tmp_path: Path) -> None:
    with _log_in(own) as client:
        exam = client.create_exam("Pool")
        labels = [Label(30, 1, page + 1) for page in range(12)]
        scan = client.upload(exam["id"], a4_scan(tmp_path / "a.pdf", labels))
        for pid in own.pool_children():
            kill_hard(pid)
        found = client.wait_scan(scan["scan_id"], seconds=120)
    assert (found["state"], found["pages"]) == ("DONE", 12), found


def test_everything_listens_on_loopback_only(own: Embedded) -> None:
    addresses = set()
    for process in [psutil.Process(own.up.pid), *descendants(own.up.pid)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr:
                addresses.add(connection.laddr.ip)
    assert addresses <= {"127.0.0.1", "::1"} and addresses


def test_one_home_belongs_to_one_product(own: Embedded) -> None:
    done = own.cli("up", seconds=60)
    assert done.returncode != 0
    assert str(own.home) in done.stdout + done.stderr
    assert own.get("/api/health").status_code == 200


def test_metrics_hold_every_room(own: Embedded) -> None:
    text = own.get("/metrics").text
    for name in ("http_requests_total", "grading_copies_by_status", "grading_import_duration_seconds_bucket",
                 "grading_finalize_duration_seconds_bucket", "grading_lock_conflicts_total"):  # fmt: skip
        assert f"\n{name}" in text, name


def test_five_wrong_passwords_close_the_door(own: Embedded) -> None:
    with _log_in(own) as admin:
        admin.create_user("guessed", "correct-horse-1", ["marker"])
    with httpx.Client(base_url=own.url, trust_env=False) as thief:
        body = {"username": "guessed", "password": "wrong-password-1"}
        codes = [thief.post("/api/login", json=body).status_code for _ in range(6)]
        assert codes == [401] * 5 + [429]
        told = thief.post("/api/login", json=body | {"password": "correct-horse-1"})
        assert told.status_code == 429 and told.headers["Retry-After"]


def test_stop_and_second_start(fresh: Embedded, tmp_path: Path) -> None:
    fresh.start()
    with _log_in(fresh) as client:
        copy_id = _import_one(client, tmp_path, 40)
    family = [process.pid for process in descendants(fresh.up.pid)]
    assert len(family) >= len(CHILDREN)
    assert fresh.stop_cleanly() == 0
    wait_for("every child to end", lambda: not [pid for pid in family if is_alive(pid)], seconds=10)
    began = time.monotonic()
    fresh.start()
    seconds = time.monotonic() - began
    print(f"second start to ready: {seconds:.1f} s; resident {fresh.resident_bytes() / 1e6:.0f} MB")
    assert seconds < 20
    with _log_in(fresh) as client:
        assert client.copy(copy_id)["status"] == "READY"
    # a signal to the whole process group stops as cleanly as one to the parent (decisions.md, Running)
    os.killpg(os.getpgid(fresh.up.pid), signal.SIGINT)
    assert fresh.stop_cleanly(signal.SIGINT) == 0


def test_a_start_after_sigkill_of_the_whole_product(fresh: Embedded, tmp_path: Path) -> None:
    fresh.start()
    with _log_in(fresh) as client:
        copy_id = _import_one(client, tmp_path, 41)
    fresh.up.kill()
    fresh.start()
    with _log_in(fresh) as client:
        assert client.copy(copy_id)["status"] == "READY"


def test_the_first_password_is_made_and_kept(fresh: Embedded) -> None:
    del fresh.extra_env["KORRIGO_HTTP__PORT"]
    fresh.extra_env |= {"KORRIGO_HTTP__PORT": "0", "KORRIGO_ADMIN_PASSWORD": ""}
    fresh.start()
    kept = fresh.home / "admin-password"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    password = kept.read_text().strip()
    assert len(password) >= 12 and fresh.output.read_text().count(password) == 1
    with Client(fresh.url) as client:
        assert client.login("admin", password).user["roles"] == ["admin"]
    fresh.stop_cleanly()
    fresh.start()
    assert fresh.output.read_text().count(password) == 1, "printed at the second start too"


def test_two_homes_side_by_side(own: Embedded, fresh: Embedded, tmp_path: Path) -> None:
    fresh.start()
    assert fresh.url != own.url
    with _log_in(fresh) as second:
        copy_id = _import_one(second, tmp_path, 42)
    with _log_in(own) as first, pytest.raises(Refused) as refused:
        first.copy(copy_id)
    assert refused.value.status == 404
    assert fresh.stop_cleanly() == 0
    assert own.get("/api/health").status_code == 200


def test_a_mistyped_setting_is_refused_at_boot(fresh: Embedded) -> None:
    fresh.extra_env["KORRIGO_HTTP__PROT"] = "1"
    with pytest.raises(NotReady) as refused:
        fresh.start()
    assert "KORRIGO_HTTP__PROT" in str(refused.value)


def test_a_short_first_password_is_refused(fresh: Embedded) -> None:
    fresh.admin_password = "too-short"
    with pytest.raises(NotReady):
        fresh.start()
