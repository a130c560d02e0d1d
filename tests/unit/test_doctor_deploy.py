"""`korrigo doctor --deploy`: each unsafe setting is named, what is safe is not, and no secret is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from korrigo import processes, rooms
from korrigo.doctor import deploy, health
from korrigo.doctor.patient import Patient
from korrigo.home import Home
from korrigo_kit.settings import load

LONG = "Zk4-vT9_qLw2RbX7mYc1HdN8sGf5JpAe6UoK3iBr0Wt"
SAFE = {
    "KORRIGO_DATABASE__URL": f"postgresql://korrigo:{LONG}@db.example.org/korrigo?sslmode=verify-full",
    "KORRIGO_BROKER__URL": f"amqps://korrigo:{LONG}@mq.example.org/korrigo",
    "KORRIGO_BLOBS__URL": "s3://scans",
    "KORRIGO_BLOBS__ENDPOINT": "https://s3.example.org",
    "KORRIGO_BLOBS__SECRET_ACCESS_KEY": LONG,
    "KORRIGO_HTTP__PUBLIC_URL": "https://marks.example.org",
    "KORRIGO_RPC__SECRET": LONG,
}
UNSAFE = [
    ("address", {"KORRIGO_HTTP__PUBLIC_URL": "http://marks.example.org"}, "in clear"),
    ("address", {"KORRIGO_HTTP__PUBLIC_URL": ""}, "not set"),
    ("secrets", {"KORRIGO_RPC__SECRET": "short-but-mine"}, "KORRIGO_RPC__SECRET has fewer than 32"),
    ("secrets", {"KORRIGO_RPC__SECRET": "ab" * 20}, "KORRIGO_RPC__SECRET repeats itself"),
    (
        "secrets",
        {"KORRIGO_DATABASE__URL": "postgresql://korrigo:postgres@db/korrigo"},
        "KORRIGO_DATABASE__URL is a well",
    ),
    ("secrets", {"KORRIGO_DATABASE__URL": "postgresql://korrigo@db/korrigo"}, "KORRIGO_DATABASE__URL has fewer"),
    ("secrets", {"KORRIGO_BROKER__URL": "amqp://guest:guest@mq/"}, "KORRIGO_BROKER__URL is a well-known"),
    ("secrets", {"KORRIGO_BLOBS__SECRET_ACCESS_KEY": "minioadmin"}, "KORRIGO_BLOBS__SECRET_ACCESS_KEY is a well-known"),
    ("transport", {"KORRIGO_DATABASE__URL": f"postgresql://korrigo:{LONG}@db/korrigo"}, "the database at db"),
    ("transport", {"KORRIGO_BROKER__URL": f"amqp://korrigo:{LONG}@mq/"}, "the broker at mq"),
    ("transport", {"KORRIGO_BLOBS__ENDPOINT": "http://minio:9000"}, "the object store at minio"),
    ("debugging", {"KORRIGO_LOG__LEVEL": "debug"}, "KORRIGO_LOG__LEVEL"),
    ("debugging", {"KORRIGO_RPC__REFLECTION": "true"}, "KORRIGO_RPC__REFLECTION"),
]
Asked = Callable[..., dict[str, health.Finding]]


def asked(environ: dict[str, str], home: Home, *, is_embedded: bool = False) -> dict[str, health.Finding]:
    settings = load(rooms.sections(), {name: value for name, value in environ.items() if value})
    told = SimpleNamespace(settings=settings, home=home, is_embedded=is_embedded, children={})
    return {found.name: found for found in health.examine(cast(Patient, told), deploy.CHECKS)}


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)


def test_what_is_safe_is_called_so(tmp_path: Path) -> None:
    found = asked(SAFE, Home(tmp_path / "none"))
    assert {name: one.text for name, one in found.items() if one.is_ok is False} == {}
    assert [found[name].is_ok for name in ("address", "secrets", "transport", "debugging")] == [True] * 4


@pytest.mark.parametrize(("name", "given", "text"), UNSAFE)
def test_what_is_unsafe_is_named_and_not_shown(name: str, given: dict[str, str], text: str, tmp_path: Path) -> None:
    found = asked(SAFE | given, Home(tmp_path / "none"))
    assert found[name].is_ok is False and text in found[name].text and found[name].hint
    assert LONG not in str(found)


def test_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    home.secret("rpc-secret")
    own = {
        "KORRIGO_DATABASE__URL": f"postgresql://korrigo:{LONG}@/korrigo?host={home.run}&port=5432",
        "KORRIGO_RPC__SECRET": LONG,
    }
    found = asked(own, home, is_embedded=True)
    assert [found[name].is_ok for name in ("address", "secrets", "transport", "rights", "user")] == [
        None, True, True, True, True,
    ]  # fmt: skip
    assert "on the disk of the data" in found["backups"].text
    (home.secrets / "rpc-secret").chmod(0o644)
    home.blobs.chmod(0o755)
    home.root.chmod(0o777)
    text = asked(own, home, is_embedded=True)["rights"].text
    assert str(home.blobs) in text and "rpc-secret" in text and f"{home.root}," in text
    assert asked(own | {"KORRIGO_BACKUP__NIGHTLY": "false"}, home, is_embedded=True)["backups"].text.endswith("is off")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert asked(own, home, is_embedded=True)["user"].is_ok is False


def test_the_running_product_is_asked_and_not_this_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "environment_of", lambda pid: SAFE | {"KORRIGO_LOG__LEVEL": "DEBUG"})
    told = SimpleNamespace(settings=load(rooms.sections(), SAFE), children={"api": 1}, is_embedded=True)
    assert deploy._debugging(cast(Patient, told)) == (False, "KORRIGO_LOG__LEVEL=DEBUG")
