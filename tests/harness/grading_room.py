"""The grading room alone, served over real HTTP and gRPC on a database of its own, cloned from a template."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql

from harness.processes import wait_for
from harness.servers import Postgres
from korrigo_grading.flows.accounts import ensure_admin
from korrigo_grading.room import ROOM
from korrigo_kit.migrate import Plan, migrate
from korrigo_kit.rest import create_app
from korrigo_kit.room import Process, Runtime
from korrigo_kit.rpc import RpcServer
from korrigo_kit.settings import KIT_SECTIONS, Settings, load

ADMIN_PASSWORD = "correct-horse-battery"
Json = dict[str, Any]
_templates: dict[int, str] = {}
_lock = threading.Lock()


def _environment(url: str, folder: Path) -> dict[str, str]:
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "KORRIGO_DATABASE__URL": url,
        "KORRIGO_BLOBS__URL": f"file://{folder}/blobs",
        "KORRIGO_RPC__SECRET": "only for this test, 32 characters",
        "KORRIGO_RPC__GRADING": f"unix:{folder}/grading.sock",
        "KORRIGO_RPC__INGEST": f"unix:{folder}/ingest.sock",
        "KORRIGO_RPC__RENDER": f"unix:{folder}/render.sock",
        "KORRIGO_AUTH__SIGNING_KEY": key.decode(),
    }


def new_database(server: Postgres, folder: Path) -> str:
    """Clone a database with grading's schema and its admin; the first call makes the template."""
    with _lock:
        if server.port not in _templates:
            name = server.create_database("grading")
            settings = load(ROOM.settings, _environment(server.url(name), folder))
            migrate(settings.database, [Plan(ROOM.name, ROOM.migrations)])
            process = Process.build([ROOM], settings)
            ensure_admin(process.runtimes["grading"], ADMIN_PASSWORD)
            process.close()
            _templates[server.port] = name
    with psycopg.connect(server.url(), autocommit=True) as connection:
        clone = f"{_templates[server.port]}_{secrets.token_hex(3)}"
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(clone), sql.Identifier(_templates[server.port])
            )
        )
    return clone


class GradingRoom:
    """One served room; `client` gives sessions of its users."""

    def __init__(self, server: Postgres, folder: Path, extra: Mapping[str, str] | None = None) -> None:
        self.database_url = server.url(new_database(server, folder))
        environ = {**_environment(self.database_url, folder), **(extra or {})}
        self.settings: Settings = load(ROOM.settings, environ)
        assert {section.section for section in KIT_SECTIONS} < set(self.settings.sections)
        self._process = Process.build([ROOM], self.settings)
        self.rt: Runtime = self._process.runtimes["grading"]
        self._rpc = RpcServer("grading", self.settings.rpc, self.rt.db, ROOM.servicers(self.rt))
        self._rpc.start()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app({"grading": self.rt}, self.settings)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        wait_for("grading", lambda: self._server.started, seconds=20)
        self._clients: list[httpx.Client] = []

    def anonymous(self) -> httpx.Client:
        """Return a client that has not logged in."""
        client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self._clients.append(client)
        return client

    def log_in(self, username: str = "admin", password: str = ADMIN_PASSWORD) -> httpx.Client:
        """Return a client with a user's token."""
        client = self.anonymous()
        answer = client.post("/api/login", json={"username": username, "password": password})
        assert answer.status_code == 200, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        client.cookies.clear()
        return client

    def user(self, username: str, *roles: str) -> tuple[httpx.Client, str]:
        """Make a user and log in; returns the client and the account's id."""
        password = f"password of {username}"
        body = {"username": username, "password": password, "roles": list(roles)}
        made = self.log_in().post("/api/users", json=body)
        assert made.status_code == 201, made.text
        return self.log_in(username, password), made.json()["id"]

    def events(self, subject_type: str, subject_id: str) -> list[dict[str, Any]]:
        """Read what was told about a subject, in order."""
        with self.rt.db.transaction() as tx:
            return tx.all(
                "SELECT type, action, payload, source_seq, convert_from(leaf, 'UTF8')::jsonb AS leaf FROM outbox"
                " WHERE subject_type = %s AND subject_id = %s ORDER BY source_seq",
                (subject_type, subject_id),
            )

    def close(self) -> None:
        """Stop serving."""
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join(15)
        self._rpc.stop(0)
        self._process.close()
