"""POST /api/ops/alerts: what Alertmanager says is kept once, in episodes, bounded, for those who may see it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.alerts import ROOT, rules
from harness.grading_room import GradingRoom
from harness.processes import Child, clean_environment, free_port, wait_for
from harness.servers import Postgres
from korrigo_grading.flows import alerting
from korrigo_grading.models import alerts
from korrigo_grading.settings import AlertingSettings
from korrigo_kit.ids import new_id
from korrigo_kit.rpc import Channels
from korrigo_kit.settings import SettingsError, load
from korrigo_operator.asking import Rooms

ALERTS = "/api/ops/alerts"
Json = dict[str, Any]


@pytest.fixture
def room(postgres_server: Postgres, tmp_path: Path) -> Iterator[GradingRoom]:
    room = GradingRoom(postgres_server, tmp_path)
    yield room
    room.close()


def alert(name: str, *, start: str = "2026-01-12T03:12:00Z", end: str | None = None, **labels: str) -> Json:
    return {
        "status": "resolved" if end else "firing",
        "labels": {"alertname": name, "severity": "warning", **labels},
        "annotations": {"summary": f"{name} summary"},
        "startsAt": start,
        "endsAt": end or "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": f"{hash((name, *sorted(labels.items()))) & 0xFFFFFFFF:016x}",
    }


def notification(*told: Json, key: str = "ImportStuck") -> Json:
    """Write the document as Alertmanager does, fields that we do not read included."""
    is_firing = any(one["status"] == "firing" for one in told)
    return {
        "version": "4", "groupKey": f'{{}}:{{alertname="{key}"}}', "truncatedAlerts": 0,
        "status": "firing" if is_firing else "resolved", "receiver": "korrigo", "groupLabels": {"alertname": key},
        "commonLabels": {}, "commonAnnotations": {}, "externalURL": "http://alertmanager", "alerts": list(told),
    }  # fmt: skip


def post(client: httpx.Client, *told: Json, key: str = "ImportStuck", status: int = 200) -> Json:
    answer = client.post(ALERTS, json=notification(*told, key=key))
    assert answer.status_code == status, answer.text
    found: Json = answer.json()
    return found


def listed(client: httpx.Client, **params: str | int) -> list[Json]:
    found: list[Json] = client.get(ALERTS, params=params).json()["items"]
    return found


def test_a_group_fires_ends_and_fires_anew(room: GradingRoom) -> None:
    eye, _ = room.user("alertmanager", "auditor")
    first = post(eye, alert("ImportStuck", copy="1"))
    assert (first["recorded"], first["repeated"]) == (1, 0)
    again = post(eye, alert("ImportStuck", copy="1"))
    assert again == {"group_id": first["group_id"], "recorded": 0, "repeated": 1, "ignored": 0}
    # a second alert joins, the first one ends: the group still fires
    post(eye, alert("ImportStuck", copy="2", start="2026-01-12T03:14:00Z"))
    post(eye, alert("ImportStuck", copy="1", end="2026-01-12T03:20:00Z"))
    (group,) = listed(eye, status="firing")
    assert (group["id"], group["ended_at"], group["started_at"]) == (
        first["group_id"], None, "2026-01-12T03:12:00.000000Z"
    )  # fmt: skip
    assert [one["status"] for one in group["alerts"]] == ["resolved", "firing"]
    post(eye, alert("ImportStuck", copy="2", start="2026-01-12T03:14:00Z", end="2026-01-12T03:25:00Z"))
    assert listed(eye, status="firing") == []
    # a late repeat of what has ended revives nothing
    assert post(eye, alert("ImportStuck", copy="2", start="2026-01-12T03:14:00Z"))["recorded"] == 0
    (group,) = listed(eye)
    assert (group["status"], group["ended_at"]) == ("resolved", "2026-01-12T03:25:00.000000Z")
    # the same trouble an hour later is another episode
    second = post(eye, alert("ImportStuck", copy="1", start="2026-01-12T04:30:00Z"))
    assert second["group_id"] != first["group_id"]
    assert [one["id"] for one in listed(eye)] == [second["group_id"], first["group_id"]]
    page = eye.get(ALERTS, params={"limit": 1}).json()
    assert [one["id"] for one in listed(eye, cursor=page["next_cursor"])] == [first["group_id"]]


def test_an_alert_that_came_back_between_two_notifications_ends_once(room: GradingRoom) -> None:
    """Alertmanager tells the end under the later beginning only; the earlier one must not fire for ever."""
    admin = room.log_in()
    first = post(admin, alert("ImportStuck", copy="1"))
    end = "2026-01-12T03:30:00Z"
    later = alert("ImportStuck", copy="1", start="2026-01-12T03:20:00Z", end=end)
    assert post(admin, later)["group_id"] == first["group_id"]
    (group,) = listed(admin)
    assert (group["status"], group["ended_at"]) == ("resolved", "2026-01-12T03:30:00.000000Z")
    ends = ["2026-01-12T03:20:00.000000Z", "2026-01-12T03:30:00.000000Z"]
    assert [one["ended_at"] for one in group["alerts"]] == ends
    # the earlier one, told late once more, revives nothing
    post(admin, alert("ImportStuck", copy="1"))
    assert listed(admin, status="firing") == []


def test_an_alert_that_began_while_we_were_down_is_kept_by_its_end(room: GradingRoom) -> None:
    admin = room.log_in()
    post(admin, alert("DatabaseDown", end="2026-01-12T03:15:00Z"), key="DatabaseDown")
    (group,) = listed(admin)
    assert group["status"] == "resolved" and group["alerts"][0]["labels"]["alertname"] == "DatabaseDown"


def test_the_watchdog_and_tests_are_signs_of_life_only(room: GradingRoom) -> None:
    admin = room.log_in()
    heard = post(
        admin, alert("Watchdog", severity="none"), alert("Any", korrigo_test="probe-7", severity="critical"),
        alert("BrokerDown"),
    )  # fmt: skip
    assert (heard["ignored"], heard["recorded"]) == (2, 1)
    assert post(admin, alert("Watchdog", severity="none"))["group_id"] is None
    names = {one["labels"]["alertname"] for group in listed(admin) for one in group["alerts"]}
    assert names == {"BrokerDown"}
    with room.rt.db.transaction() as tx:
        beats = {row["name"]: row["facts"] for row in tx.all("SELECT name, facts FROM heartbeats")}
    assert beats["alert-test"] == {"id": "probe-7"} and "watchdog" in beats
    assert "watchdog" in {part["name"] for part in admin.get("/api/ops/summary").json()["parts"]}


def test_a_flood_and_long_texts_are_bounded(room: GradingRoom) -> None:
    admin = room.log_in()
    many = [alert("Flood", number=str(number)) for number in range(alerts.MOST_ALERTS + 5)]
    assert post(admin, *many[:600])["recorded"] == 600
    assert post(admin, *many[600:])["recorded"] == alerts.MOST_ALERTS - 600
    post(admin, *many[600:])
    (group,) = listed(admin)
    assert (len(group["alerts"]), group["left_out"]) == (alerts.MOST_ALERTS, 5)
    long = alert("Long", text="é" * 5000) | {"annotations": {"n" * 300: "x" * 9000}}
    post(admin, long, key="L" * 3000)
    kept = listed(admin, limit=1)[0]["alerts"][0]
    assert len(kept["labels"]["text"]) == 1000
    assert kept["annotations"] == {"n" * 100: "x" * 1000}
    answer = admin.post(ALERTS, content=b'{"version": "4", "x": "' + b"y" * (1 << 20) + b'"}')
    assert answer.status_code == 413


def test_old_groups_go_and_those_that_fire_stay(room: GradingRoom) -> None:
    admin = room.log_in()
    post(admin, alert("Old", start="2024-01-12T03:00:00Z", end="2024-01-12T04:00:00Z"), key="Old")
    post(admin, alert("Lasting", start="2024-01-12T03:00:00Z"), key="Lasting")
    alerting.prune(room.rt)
    assert [group["labels"]["alertname"] for group in listed(admin)] == ["Lasting"]


def test_the_operator_hears_of_an_old_group_that_it_asks_for_and_of_one_that_is_gone(room: GradingRoom) -> None:
    """However many came since: an Incident follows its group to the end, and ends with it."""
    admin = room.log_in()
    old = post(admin, alert("Old", start="2025-01-12T03:00:00Z"), key="Old")["group_id"]
    for number in range(100):
        post(admin, alert("New"), key=f"New{number}")
    channels, gone = Channels(room.settings.rpc, "operator"), new_id()
    try:
        rooms = Rooms(channels)
        newest, unknown = rooms.alert_episodes()
        assert (len(newest), old in [episode.id for episode in newest], unknown) == (100, False, [])
        told, unknown = rooms.alert_episodes([old, gone, newest[0].id])
        assert [episode.id for episode in told] == [*(episode.id for episode in newest), old]
        assert unknown == [gone]
    finally:
        channels.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": "3"}, {"alerts": []}, {"groupKey": ""}, {"alerts": [{"status": "firing"}]},
        {"alerts": [alert("A") | {"startsAt": "yesterday"}]}, {"alerts": [alert("A") | {"labels": {"a": 1}}]},
        {"alerts": [alert("A\x00")]},
    ],
)  # fmt: skip
def test_what_is_no_notification_is_refused_and_keeps_nothing(room: GradingRoom, wrong: Json) -> None:
    admin = room.log_in()
    assert admin.post(ALERTS, json=notification(alert("A")) | wrong).status_code == 422
    assert listed(admin) == []


def test_only_auditors_and_admins_and_also_while_read_only(room: GradingRoom) -> None:
    marker, _ = room.user("somebody", "marker")
    post(marker, alert("ImportStuck"), status=403)
    assert marker.get(ALERTS).status_code == 403
    assert room.anonymous().post(ALERTS, json=notification(alert("A"))).status_code == 401
    with room.rt.db.transaction() as tx:
        tx.run("INSERT INTO switches (name, value) VALUES ('read_only', 1)")
    admin = room.log_in()
    wait_for("read-only", lambda: admin.post("/api/exams", json={}).status_code == 503, seconds=5)
    assert post(admin, alert("ImportStuck"))["recorded"] == 1


@pytest.mark.skipif(shutil.which("prometheus-alertmanager") is None, reason="prometheus-alertmanager is missing")
def test_the_shipped_alertmanager_tells_a_real_room(room: GradingRoom, tmp_path: Path) -> None:
    """deploy/alertmanager.yml, with the token of an auditor in the file that it names."""
    eye, _ = room.user("alertmanager", "auditor")
    (tmp_path / "token").write_text(eye.headers["Authorization"].removeprefix("Bearer "))
    (tmp_path / "slack").write_text("http://127.0.0.1:9/slack")
    text = (ROOT / "deploy" / "alertmanager.yml").read_text()
    text = text.replace("http://127.0.0.1:8088", room.url).replace(
        "/etc/korrigo/alertmanager-token", str(tmp_path / "token")
    )
    text = text.replace("/etc/korrigo/slack-webhook", str(tmp_path / "slack"))
    text = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", text)
    (tmp_path / "alertmanager.yml").write_text(text)
    port = free_port()
    words = [
        "prometheus-alertmanager", f"--config.file={tmp_path / 'alertmanager.yml'}", f"--storage.path={tmp_path}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    rule = next(rule for rule in rules("alert") if rule["alert"] == "WorkersDown")
    fired = {"labels": {"alertname": "WorkersDown", **rule["labels"]}, "annotations": rule["annotations"]}
    child = Child("alertmanager", words, tmp_path / "log", clean_environment())
    child.start()
    try:
        base = f"http://127.0.0.1:{port}"
        wait_for("Alertmanager", lambda: httpx.get(f"{base}/-/ready").is_success, seconds=30)
        httpx.post(f"{base}/api/v2/alerts", json=[fired]).raise_for_status()
        (group,) = wait_for("the alert in the product", lambda: listed(eye, status="firing"), seconds=30)
        told = group["alerts"][0]
        assert (told["labels"]["priority"], told["labels"]["scenario"]) == ("P0", rule["labels"]["scenario"])
        assert told["annotations"]["runbook_url"] == rule["annotations"]["runbook_url"]
        end = fired | {"startsAt": told["started_at"], "endsAt": told["started_at"]}
        httpx.post(f"{base}/api/v2/alerts", json=[end]).raise_for_status()
        wait_for("its end", lambda: listed(eye, status="resolved"), seconds=30)
    finally:
        child.stop()


def test_alertmanager_may_show_the_token_of_the_settings(postgres_server: Postgres, tmp_path: Path) -> None:
    """It tells, and reads nothing; another token, and an empty one, is nobody's."""
    token = "alertmanager-in-a-cluster-0123456789"
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    room = GradingRoom(postgres_server, tmp_path, {"KORRIGO_ALERTING__TOKEN_FILE": str(file)})
    try:
        client = room.anonymous()
        client.headers["Authorization"] = f"Bearer {token}"
        assert post(client, alert("ImportStuck", copy="1"))["recorded"] == 1
        assert client.get(ALERTS).status_code == 401
        assert client.get("/api/me").status_code == 401
        for other in (f"{token}x", token[:-1], "none"):
            client.headers["Authorization"] = f"Bearer {other}"
            post(client, alert("ImportStuck", copy="1"), status=401)
    finally:
        room.close()
    with pytest.raises(SettingsError, match="32 characters"):
        load((AlertingSettings,), {"KORRIGO_ALERTING__TOKEN": "short"})
