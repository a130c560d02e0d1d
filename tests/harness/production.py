"""Production mode: one process per room and part on real servers, set up by environment variables only.

`Production` starts what a cluster would: `korrigo migrate`, `korrigo run ROOM`, `korrigo work ROOM`, a gateway in
front (house.md, "Public path prefixes"). `Keeper` restarts what dies, as systemd or a kubelet does.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from harness.instance import KORRIGO, ROOMS, Instance
from harness.processes import Child, NotReady, clean_environment, free_port, listens, wait_for
from harness.servers import S3, Postgres, RabbitMQ

PREFIXES = {
    "ingest": ("/api/scans", "/api/uploads", "/api/pages", "/api/students", "/api/identification"),
    "audit": ("/api/audit", "/verify"),
    "grading": ("/",),
}
PARTS = ("api", "relay", "sweeper")
RESTART_SECONDS = 1.0


@dataclass
class Kept:
    """One process that must always run, and how often it had to be started again."""

    child: Child
    restarts: int = 0
    started: float = field(default_factory=time.monotonic)


class Keeper:
    """Starts processes and starts them again when they end, until told to stop."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)

    def add(self, child: Child) -> None:
        """Start a process and keep it alive."""
        child.start()
        with self._lock:
            self.kept[child.name] = Kept(child)
        if not self._thread.is_alive():
            self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            with self._lock:
                for kept in self.kept.values():
                    # a process that dies at once is not restarted in a busy loop
                    if not kept.child.is_running() and time.monotonic() - kept.started > RESTART_SECONDS:
                        kept.restarts += 1
                        kept.started = time.monotonic()
                        kept.child.start()

    def living(self, pattern: str) -> list[int]:
        """List the process ids of running processes whose name matches."""
        with self._lock:
            return [k.child.pid for n, k in self.kept.items() if re.fullmatch(pattern, n) and k.child.is_running()]

    def stop(self, *, seconds: float = 30) -> dict[str, int]:
        """SIGTERM everything, wait, return the exit codes; kills what does not end."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(10)
        for kept in self.kept.values():
            if kept.child.is_running():
                os.kill(kept.child.pid, signal.SIGTERM)
        codes = {}
        deadline = time.monotonic() + seconds
        for name, kept in self.kept.items():
            try:
                codes[name] = kept.child.stop(seconds=max(0.1, deadline - time.monotonic()))
            except NotReady:
                codes[name] = -signal.SIGKILL
            kept.child.kill()
        return codes


def _key_pair() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return private, public


class Production(Instance):
    """The four rooms as processes on PostgreSQL, RabbitMQ and S3.

    `split` gives each part a process of its own; `together` has one for all rooms and one for all their work, for
    tests of what lies below the processes.
    """

    mode = "production"

    def __init__(
        self,
        postgres: Postgres,
        rabbitmq: RabbitMQ,
        s3: S3,
        *,
        split: bool = False,
        together: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(env)
        self.postgres, self.rabbitmq, self.s3 = postgres, rabbitmq, s3
        self.split = split
        self.together = together
        self.keeper = Keeper()
        port = free_port()
        self.http_ports = {room: port if together else free_port() for room in ROOMS}
        self.gateway_port = free_port()
        self.url = f"http://127.0.0.1:{self.gateway_port}"
        self._database = ""
        private, public = _key_pair()
        self._private_key = private
        self._common = {
            "KORRIGO_BROKER__URL": rabbitmq.url,
            "KORRIGO_BLOBS__URL": s3.prefixed_url(f"instance-{secrets.token_hex(4)}"),
            "KORRIGO_BLOBS__ENDPOINT": s3.endpoint,
            "KORRIGO_BLOBS__ACCESS_KEY_ID": s3.access_key_id,
            "KORRIGO_BLOBS__SECRET_ACCESS_KEY": s3.secret_access_key,
            "KORRIGO_BLOBS__REGION": s3.region,
            "KORRIGO_RPC__SECRET": secrets.token_hex(24),
            "KORRIGO_AUTH__PUBLIC_KEYS": public,
        } | {f"KORRIGO_RPC__{room.upper()}": f"127.0.0.1:{free_port()}" for room in ROOMS}

    @property
    def env(self) -> dict[str, str]:
        database = {"KORRIGO_DATABASE__URL": self.postgres.url(self._database)}
        return super().env | self._common | database | self.extra_env

    def room_env(self, room: str) -> dict[str, str]:
        """Return the environment of one room's processes."""
        own = {"KORRIGO_HTTP__PORT": str(self.http_ports[room])}
        if room == "grading":
            own["KORRIGO_AUTH__SIGNING_KEY"] = self._private_key
        return self.env | own

    def start(self) -> None:
        """Migrate the database (a new one at first), start every process, wait until each room is ready."""
        self.make_database()
        migrated = self.cli("migrate")
        if migrated.returncode != 0:
            raise NotReady(f"korrigo migrate failed\n{migrated.stdout[-2000:]}{migrated.stderr[-2000:]}")
        for room in ("all",) if self.together else ROOMS:
            for name, words in self._processes(room):
                self._keep(name, [str(KORRIGO), *words], self.room_env("grading" if self.together else room))
        self._keep_gateway()
        try:
            for port in self.http_ports.values():
                wait_for(f"port {port}", lambda port=port: listens(port), seconds=90)  # type: ignore[misc]
            self.wait_ready(60)
        except NotReady as error:
            tails = [f"--- {name}\n{k.child.tail(15)}" for name, k in self.keeper.kept.items()]
            raise NotReady(f"{error}\n" + "\n".join(tails)) from None

    def make_database(self, like: Production | None = None) -> None:
        """Make the database, empty or a copy of a stopped instance's; for what is done before the first start."""
        self.logs.mkdir(exist_ok=True)
        if like is not None:
            self._database = self.postgres.create_database(template=like._database)
            self._common["KORRIGO_BLOBS__URL"] = like._common["KORRIGO_BLOBS__URL"]
        elif not self._database:
            self._database = self.postgres.create_database()

    def blob_key(self, sha256: str) -> str:
        """Return the key of an object in the bucket."""
        prefix = self._common["KORRIGO_BLOBS__URL"].removeprefix(f"{self.s3.url}/")
        return f"{prefix}/cas/{sha256[:2]}/{sha256}"

    @property
    def database_url(self) -> str:
        """Return the administrator's URL of the database."""
        return self.postgres.url(self._database)

    def _processes(self, room: str) -> Sequence[tuple[str, Sequence[str]]]:
        if not self.split:
            return [(f"run-{room}", ("run", room)), (f"work-{room}", ("work", room))]
        parts = [(f"{part}-{room}", ("run", room, "--part", part)) for part in PARTS]
        return [*parts, (f"work-{room}", ("work", room))]

    def _keep(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.keeper.add(Child(name, argv, self.logs / f"{name}.log", env, cwd=self.home))

    def _keep_gateway(self) -> None:
        routes = [f"{prefix}={self.http_ports[room]}" for room, prefixes in PREFIXES.items() for prefix in prefixes]
        env = clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}
        argv = [sys.executable, "-m", "harness.gateway", str(self.gateway_port), *routes]
        self._keep("gateway", argv, env)

    def workers(self) -> list[int]:
        return self.keeper.living("work-.*")

    def victims(self) -> dict[str, list[int]]:
        pattern = {"api": "(api|run)-.*", "worker": "work-.*", "relay": "relay-.*", "sweeper": "sweeper-.*"}
        found = {kind: self.keeper.living(names) for kind, names in pattern.items()}
        return found | {"pool_child": self.pool_children()}

    def wipe_broker(self) -> None:
        self.rabbitmq.wipe()

    def stop(self) -> None:
        try:
            self.keeper.stop()
        finally:
            if os.environ.get("KORRIGO_TEST_KEEP_HOMES") != "1":
                shutil.rmtree(self.home, ignore_errors=True)
                shutil.rmtree(self.temporary, ignore_errors=True)

    def _roots(self) -> list[int]:
        return self.keeper.living(".*")
