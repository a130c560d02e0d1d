"""Secrets in files change while processes run: both are accepted meanwhile, and the old one ends."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql

from harness.processes import wait_for
from harness.servers import Postgres
from korrigo_kit import broker
from korrigo_kit.auth import PeerTokens, Principal, Signer, Verifier
from korrigo_kit.db import Database
from korrigo_kit.errors import Unauthenticated, Unavailable
from korrigo_kit.settings import DatabaseSettings, RpcSettings, Settings, SettingsError, Watched, load
from korrigo_protos.common.v1 import event_pb2

OLD, NEW, OTHER = ("o" * 32, "n" * 32, "x" * 32)
WHO = Principal("u", "zoe", ("marker",), session_id="s")


def put(path: Path, text: str) -> Path:
    """Replace a file as the product does."""
    temporary = path.with_name("." + path.name)
    temporary.write_text(text)
    return temporary.replace(path)


def rpc(folder: Path, secret: str, previous: str = "") -> Settings:
    put(folder / "secret", secret)
    put(folder / "previous", previous)
    return load(
        environ={
            "KORRIGO_RPC__SECRET_FILE": str(folder / "secret"),
            "KORRIGO_RPC__PREVIOUS_SECRET_FILE": str(folder / "previous"),
        }
    )


def key() -> tuple[str, str]:
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode(), public.decode()


def test_rooms_change_their_secret_one_after_another_and_no_call_is_refused(tmp_path: Path) -> None:
    """Those that live on and those that are started anew understand each other at every step."""
    folders = {name: tmp_path / name for name in ("ingest", "grading")}
    for folder in folders.values():
        folder.mkdir()
    lasting = {name: PeerTokens(rpc(folder, OLD).rpc, name) for name, folder in folders.items()}
    fresh = dict(lasting)
    for step in ((OLD, NEW), (NEW, OLD), (NEW, "")):
        # Who lives on may sign with what it knew for a second; only then the old one may be dropped.
        if step[1] == "":
            wait_for("everybody signs anew", lambda: all(map(signs_anew, lasting.values())), seconds=5)
        for changed, folder in folders.items():
            fresh[changed] = PeerTokens(rpc(folder, *step).rpc, changed)
            for rooms in (lasting, fresh, {**lasting, changed: fresh[changed]}):
                assert rooms["grading"].accept(rooms["ingest"].issue("grading", WHO))[0] == "ingest"
                assert rooms["ingest"].accept(rooms["grading"].issue("ingest", None)) == ("grading", None)
    old = PeerTokens(load(environ={"KORRIGO_RPC__SECRET": OLD}).rpc, "ingest")
    assert not signs_anew(old)

    def is_refused(called: PeerTokens) -> bool:
        try:
            called.accept(old.issue("grading", None))
        except Unauthenticated:
            return True
        return False

    assert is_refused(fresh["grading"])
    wait_for("the old secret ends", lambda: is_refused(lasting["grading"]), seconds=5)


def signs_anew(room: PeerTokens) -> bool:
    try:
        PeerTokens(load(environ={"KORRIGO_RPC__SECRET": NEW}).rpc, "peer").accept(room.issue("peer", None))
    except Unauthenticated:
        return False
    return True


def test_many_threads_meet_a_new_secret_at_once(tmp_path: Path) -> None:
    """Whoever comes second does not find that nothing changed."""
    called = PeerTokens(rpc(tmp_path, OLD).rpc, "grading")
    caller = PeerTokens(load(environ={"KORRIGO_RPC__SECRET": NEW}).rpc, "ingest")
    rpc(tmp_path, NEW)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda _: called.accept(caller.issue("grading", None))[0] == "ingest", range(200)))


def test_events_sealed_before_the_change_are_taken_until_it_ends(tmp_path: Path) -> None:
    settings = rpc(tmp_path, OLD)
    event = event_pb2.Event(id="1", type="recorded", source="grading")
    before = broker.encode(settings, event)
    assert broker.decode(settings, before) == event
    rpc(tmp_path, NEW, OLD)
    assert broker.decode(settings, before) == event
    after = wait_for(
        "events under the new secret",
        lambda: made if (made := broker.encode(settings, event))["seal"] != before["seal"] else None,
        seconds=5,
    )
    assert broker.decode(settings, after) == event
    rpc(tmp_path, NEW)
    wait_for("the old seal is foreign", lambda: _is_foreign(settings, before), seconds=5)
    assert broker.decode(settings, after) == event
    assert _is_foreign(settings, broker.encode(load(environ={"KORRIGO_RPC__SECRET": OTHER}), event))


def _is_foreign(settings: Settings, body: dict[str, str]) -> bool:
    try:
        broker.decode(settings, body)
    except Unauthenticated:
        return True
    return False


def test_sessions_outlive_their_key_until_its_end(tmp_path: Path) -> None:
    (old, old_public), (new, _) = key(), key()
    signing, listed = put(tmp_path / "signing", old), put(tmp_path / "listed", "")
    settings = load(
        environ={
            "KORRIGO_AUTH__SIGNING_KEY_FILE": str(signing),
            "KORRIGO_AUTH__PUBLIC_KEYS_FILE": str(listed),
        }
    )
    verifier = Verifier(settings.auth)
    session = Signer(old, 600).token(WHO)
    assert verifier.verify(session).user_id == "u"
    until = datetime.now(UTC) + timedelta(seconds=3)
    put(listed, f"Accepted-Until: {until.isoformat()}\n{old_public}")
    put(signing, new)
    assert verifier.verify(Signer(new, 600).token(WHO)).user_id == "u"
    assert verifier.verify(session).user_id == "u"
    assert settings.auth.signing_key is not None
    wait_for(
        "logins are signed by the new key",
        lambda: settings.auth.signing_key is not None and settings.auth.signing_key.get_secret_value() == new.strip(),
        seconds=5,
    )
    wait_for("the old key ends", lambda: _is_refused(verifier, session), seconds=10)
    assert verifier.verify(Signer(new, 600).token(WHO)).user_id == "u"
    assert _is_refused(verifier, Signer(key()[0], 600).token(WHO))


def _is_refused(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except Unauthenticated:
        return True
    return False


def test_a_key_without_a_readable_end_is_refused() -> None:
    with pytest.raises(SettingsError, match="RFC 3339"):
        Verifier(load(environ={"KORRIGO_AUTH__PUBLIC_KEYS": f"Accepted-Until: soon\n{key()[1]}"}).auth)


def test_a_watch_that_begins_after_the_change_sees_it(tmp_path: Path) -> None:
    settings = rpc(tmp_path, OLD)
    rpc(tmp_path, NEW)
    called = PeerTokens(settings.rpc, "grading")
    caller = PeerTokens(load(environ={"KORRIGO_RPC__SECRET": NEW}).rpc, "ingest")
    assert called.accept(caller.issue("grading", None))[0] == "ingest"
    assert signs_anew(PeerTokens(settings.rpc, "grading"))


def test_a_file_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    settings = rpc(tmp_path, OLD)
    watched = Watched(settings.get(RpcSettings))
    before = watched.now()
    (tmp_path / "secret").unlink()
    assert watched.newer(before) is None and watched.now() is before
    rpc(tmp_path, NEW)
    newer = watched.newer(before)
    assert newer is not None and newer.secret.get_secret_value() == NEW


def test_new_connections_take_the_new_password(postgres_server: Postgres, tmp_path: Path) -> None:
    name, role = postgres_server.create_database("passwords"), f"changing_{os.getpid()}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as owner:
        word = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        owner.execute(word.format(sql.Identifier(role), sql.Literal(OLD)))
        base = postgres_server.url(name).split("@", 1)[1]
        url = put(tmp_path / "url", f"postgresql://{role}:{OLD}@{base}")
        settings = load(environ={"KORRIGO_DATABASE__URL_FILE": str(url)})
        watched = settings.watched(DatabaseSettings)

        def url_now() -> str:
            return (watched.newer(settings.database) or settings.database).url.get_secret_value()

        database = Database("public", url_now(), settings.database, url_now=url_now)
        assert database.is_reachable()
        owner.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(NEW)))
        database.forget_pool()
        with pytest.raises(Unavailable), database.transaction() as tx:
            tx.one("SELECT 1")
        put(url, f"postgresql://{role}:{NEW}@{base}")
        with database.transaction() as tx:
            assert tx.row("SELECT current_user AS who")["who"] == role
        database.close()
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
