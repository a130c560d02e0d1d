"""`korrigo secrets rotate` where settings are somebody else's: the steps that it writes, walked as they stand."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives import serialization

from harness.servers import Postgres
from korrigo import rooms
from korrigo.installation import new_signing_key
from korrigo.secrets_change import checking, steps
from korrigo_kit.auth import PeerTokens, Principal, Signer, Verifier, public_keys
from korrigo_kit.errors import Invalid
from korrigo_kit.migrate import Plan, migrate
from korrigo_kit.room import Process
from korrigo_kit.settings import Settings, load

WHO = Principal("u", "zoe", ("marker",), session_id="s")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of our own: its superuser gets another password."""
    made = Postgres(max_connections=40)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def settings(folder: Path, **more: str) -> Settings:
    """Read settings whose secrets lie in files of a folder, as each room's would."""
    named = {
        "KORRIGO_DATABASE__URL_FILE": "database-url",
        "KORRIGO_RPC__SECRET_FILE": "rpc-secret",
        "KORRIGO_RPC__PREVIOUS_SECRET_FILE": "rpc-secret-previous",
        "KORRIGO_AUTH__SIGNING_KEY_FILE": "signing-key.pem",
        "KORRIGO_AUTH__PUBLIC_KEYS_FILE": "public-keys.pem",
    }
    found = {name: str(folder / file) for name, file in named.items() if (folder / file).exists()}
    return load(rooms.sections(), found | more)


def test_the_database_gets_new_passwords_and_who_runs_goes_on(server: Postgres, tmp_path: Path) -> None:
    url = server.url(server.create_database("rotation"))
    (tmp_path / "database-url").write_text(url)
    before = settings(tmp_path)
    spec = importlib.util.find_spec("korrigo_grading")
    assert spec is not None and spec.submodule_search_locations
    migrate(before.database, [Plan("grading", Path(next(iter(spec.submodule_search_locations))) / "migrations")])
    process = Process.build(rooms.rooms(["grading"]), before)
    runs = process.runtimes["grading"].db
    assert runs.is_reachable()
    made = steps.plan("database", before, tmp_path / "next", at_once=False)
    assert (tmp_path / "next").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in made.files} == {0o600}
    statements, new_url = (path.read_text() for path in made.files)
    assert "SCRAM-SHA-256$" in statements
    assert new_url.split(":")[2].split("@")[0] not in statements, "no password where a log may see it"

    (tmp_path / "database-url").write_text(new_url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements)
    with pytest.raises(psycopg.OperationalError), psycopg.connect(url, connect_timeout=3):
        pass
    runs.forget_pool()
    assert runs.is_reachable(), "a process that runs reads the file when it is refused"
    process.close()
    found = {one.name: one.is_ok for one in checking.check(settings(tmp_path, **_rpc()), None)}
    assert (found["database owner"], found["database grading"]) == (True, True)
    server.password = new_url.split(":")[2].split("@")[0]  # of the superuser, for the server's own questions


def _rpc() -> dict[str, str]:
    return {"KORRIGO_RPC__SECRET": "x" * 32, "KORRIGO_AUTH__SIGNING_KEY": new_signing_key()}


def test_roles_that_are_given_are_their_owners(tmp_path: Path) -> None:
    (tmp_path / "database-url").write_text("postgresql://korrigo:old@db/korrigo")
    given = settings(tmp_path, KORRIGO_DATABASE__INGEST_URL="postgresql://theirs:x@db/korrigo")
    with pytest.raises(Invalid, match="INGEST_URL"):
        steps.plan("database", given, tmp_path / "next", at_once=False)


def test_the_steps_of_the_signing_key_refuse_no_session(tmp_path: Path) -> None:
    old = new_signing_key()
    for name in ("ingest", "grading"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "public-keys.pem").write_text(_public(old))
    (tmp_path / "grading" / "signing-key.pem").write_text(old)
    verifiers = [Verifier(settings(tmp_path / name).auth) for name in ("ingest", "grading")]
    session = Signer(old, 600).token(WHO)
    made = steps.plan("signing-key", settings(tmp_path / "grading"), tmp_path / "next", at_once=False)
    private, public = (path.read_text() for path in made.files)

    def everybody_accepts(*tokens: str) -> None:
        for token in tokens:
            assert {verifier.verify(token).user_id for verifier in verifiers} == {"u"}

    for name in ("ingest", "grading"):
        (tmp_path / name / "public-keys.pem").write_text(public)
        everybody_accepts(session)
    (tmp_path / "grading" / "signing-key.pem").write_text(private)
    everybody_accepts(session, Signer(private, 600).token(WHO))
    at_once = steps.plan("signing-key", settings(tmp_path / "grading"), tmp_path / "stolen", at_once=True)
    assert at_once.files[1].read_text().count("BEGIN PUBLIC KEY") == 1


def _public(private: str) -> str:
    (accepted,) = public_keys(load(environ={"KORRIGO_AUTH__SIGNING_KEY": private}).auth)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return accepted.key.public_bytes(serialization.Encoding.PEM, form).decode()


def test_the_steps_of_the_secret_between_rooms_refuse_no_call(tmp_path: Path) -> None:
    """Every process is started anew at every step, one after another, as without files."""
    old = "o" * 40
    made = steps.plan(
        "rpc", load(environ={"KORRIGO_RPC__SECRET": old}), tmp_path / "next", at_once=False
    )  # fmt: skip
    new, previous = (path.read_text().strip() for path in made.files)
    assert previous == old and len(new) >= 32
    running = dict.fromkeys(("ingest", "grading"), (old, ""))
    for step in ((old, new), (new, old), (new, "")):
        for name in running:
            running[name] = step
            peers = {
                room: PeerTokens(
                    load(environ={"KORRIGO_RPC__SECRET": secret, "KORRIGO_RPC__PREVIOUS_SECRET": also}).rpc, room
                )
                for room, (secret, also) in running.items()
            }
            assert peers["grading"].accept(peers["ingest"].issue("grading", WHO))[0] == "ingest"
            assert peers["ingest"].accept(peers["grading"].issue("ingest", None))[0] == "grading"
