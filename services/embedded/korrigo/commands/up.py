"""`korrigo up`: the whole product on one machine, as children of one supervisor.

    postgres ──► migrate (skipped when nothing is due) ──► api · relay · sweeper · worker

With KORRIGO_DATABASE__URL set there is no postgres of ours. Imports are few on purpose: this process stays.
"""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from korrigo import installation, postgres, probes
from korrigo.backup.schedule import Schedule
from korrigo.children import Child
from korrigo.home import Home
from korrigo.supervisor import Supervisor
from korrigo_kit.addresses import in_url
from korrigo_kit.errors import Invalid, KorrigoError, Unavailable

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_DEFAULT_PORT = 8088
# Below the range from which the kernel takes ports for outgoing connections, so that the port is still free when
# the api process is started again.
_FREE_PORTS = range(20000, 32000)


@app.command()
def up() -> None:
    """Start the whole product on this machine and keep it running until SIGINT or SIGTERM.

    Data lie in $KORRIGO_HOME, the port is $KORRIGO_HTTP__PORT. Example: KORRIGO_HTTP__PORT=0 korrigo up
    """
    raise typer.Exit(run())


def run() -> int:
    """Prepare the home and supervise the product; return the exit code."""
    home = Home.locate()
    home.prepare()
    lock = home.lock()
    try:
        plan = _plan(home)
        supervisor = Supervisor(home, plan.children, url=plan.address.url, say=_say, on_ready=plan.announce)
        return supervisor.run()
    finally:
        lock.release()


@dataclass(frozen=True, slots=True)
class Address:
    """Where the api listens."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """The address as a browser takes it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"{self.scheme}://{in_url(host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, where it answers, and what to tell at the first start."""

    children: list[Child]
    address: Address
    new_password: str
    password_file: Path

    def announce(self) -> None:
        """Print the ready line, after the first password if it was made now."""
        if self.new_password:
            _say(f"First start: log in as admin with password {self.new_password} (kept in {self.password_file})")
        _say(f"Korrigo is ready at {self.address.url}")


def _say(text: str) -> None:
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:  # nobody listens any more; the product goes on
        pass


def _plan(home: Home) -> Plan:
    is_embedded = installation.is_embedded(os.environ)
    is_first = is_embedded and not (home.postgres / "data" / "PG_VERSION").exists()
    password, is_new = installation.admin_password(home, os.environ, is_first_start=is_first)
    address = _address()
    installation.make_secrets(home)
    server = postgres.prepare(home) if is_embedded else None
    if server is not None:
        installation.note_database(home, server.url)
    installation.empty_samples(home)
    env = installation.derive(home, os.environ) | {
        "KORRIGO_HTTP__PORT": str(address.port),
        # One /metrics for all children: the api's.
        "KORRIGO_HTTP__METRICS_PORT": "0",
        installation.SAMPLES_VARIABLE: str(home.samples),
    }
    # glibc gives every thread an arena of its own; two are enough and save some 15 MB per process.
    env.setdefault("MALLOC_ARENA_MAX", "2")
    password_of_migrate = {"KORRIGO_ADMIN_PASSWORD": password or _kept_password(home)}
    env.pop("KORRIGO_ADMIN_PASSWORD", None)
    children = [] if server is None else [server.child()]
    first = tuple(child.name for child in children)
    children.append(
        Child(
            name="migrate",
            argv=_argv("migrate"),
            env=env | {name: value for name, value in password_of_migrate.items() if value},
            after=first,
            is_task=True,
            is_needless=lambda: server is not None and is_current(server),
            start_seconds=3600,  # it makes a backup first when it has something to change
        )
    )
    children += _backups(home, env, is_embedded=is_embedded)
    ready = home.run
    children += [
        _part(ready, "api", env, "run", "all", "--part", "api", address=address),
        _part(ready, "relay", env, "run", "all", "--part", "relay"),
        _part(ready, "sweeper", env, "run", "all", "--part", "sweeper"),
        _part(ready, "worker", env, "work", "all"),
    ]
    return Plan(children, address, password if is_new else "", home.admin_password_file)


def _backups(home: Home, env: dict[str, str], *, is_embedded: bool) -> list[Child]:
    """Return the errand that makes the nightly backups; its settings are read by hand, see the module's imports."""
    directory = env.get("KORRIGO_BACKUP__DIRECTORY", "")
    is_wanted = env.get("KORRIGO_BACKUP__NIGHTLY", "true").lower() not in ("0", "false", "off", "no", "n", "f")
    hour = env.get("KORRIGO_BACKUP__HOUR", "")
    if not is_wanted or not (is_embedded or directory):
        return []
    # Written once, by initdb; without a database of ours, the first start made the secrets.
    installed = home.postgres / "data" / "PG_VERSION" if is_embedded else home.secrets / "rpc-secret"
    plan = Schedule(
        Path(directory) if directory else home.root / "backups",
        installed,
        int(hour) if hour.isdecimal() and int(hour) < 24 else 2,
    )
    return [
        Child(
            name="backup",
            argv=_argv("backup", "create", "--kind", "nightly"),
            env=env,
            after=("api",),
            is_task=True,
            is_due=plan.is_due,
            start_seconds=6 * 3600,
        )
    ]


def _kept_password(home: Home) -> str:
    # An earlier first start may have been stopped before the account was made.
    try:
        return home.admin_password_file.read_text().strip()
    except OSError:
        return ""


def _argv(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "korrigo", *words)


def _part(folder: Path, name: str, env: dict[str, str], *words: str, address: Address | None = None) -> Child:
    ready_file = folder / f"{name}.ready"

    def is_ready() -> bool:
        if not ready_file.exists():
            return False
        if address is None or address.scheme != "http":
            return True
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - compared
        return probes.answers_http(host, address.port, "/api/health/ready")

    return Child(
        name=name,
        argv=_argv(*words, "--ready-file", str(ready_file)),
        env=env,
        after=("migrate",),
        is_ready=is_ready,
        before_start=lambda: ready_file.unlink(missing_ok=True),
    )


def _address() -> Address:
    host = os.environ.get("KORRIGO_HTTP__HOST") or "127.0.0.1"
    scheme = "https" if installation.has(os.environ, "KORRIGO_HTTP__TLS_CERT") else "http"
    text = os.environ.get("KORRIGO_HTTP__PORT") or str(_DEFAULT_PORT)
    if not text.isdecimal() or int(text) > 65535:
        raise Invalid("INVALID_PORT", f"KORRIGO_HTTP__PORT is not a port: {text}")
    if int(text):
        if not _is_free(host, int(text)):
            raise Unavailable("PORT_IN_USE", f"{host}:{text} is in use; set KORRIGO_HTTP__PORT to another port, or 0")
        return Address(scheme, host, int(text))
    for port in random.sample(_FREE_PORTS, 200):
        if _is_free(host, port):
            return Address(scheme, host, port)
    raise Unavailable("NO_FREE_PORT", f"found no free port on {host}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # with SO_REUSEADDR a bind alone may succeed beside a listener
        except OSError:
            return False
        return True


def is_current(server: postgres.Server) -> bool:
    """Tell whether migrating would change nothing: schemas, what is installed beside them, an account.

    By two queries and no import.
    """
    heads = {room: _head(room) for room in installation.ROOMS}
    versions = " UNION ALL ".join(f"SELECT '{room}', version_num FROM {room}.alembic_version" for room in heads)
    versions += f" UNION ALL SELECT 'installed', {installation.FINGERPRINT_SQL}"
    try:
        found = {row[0]: row[1] for row in server.query(versions)}
        has_account = server.query("SELECT EXISTS (SELECT 1 FROM grading.users WHERE NOT is_system)") == [["t"]]
    except KorrigoError:
        return False
    # Ahead is fine: this is the release before the one that moved it (korrigo_kit.migrate), and what that one
    # installed is left alone.
    is_ahead = any(found.get(room, "") > head for room, head in heads.items())
    is_installed = is_ahead or found.get("installed") == installation.fingerprint()
    return has_account and is_installed and all(found.get(room, "") >= head for room, head in heads.items())


def _head(room: str) -> str:
    spec = importlib.util.find_spec(f"korrigo_{room}")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [path.name for folder in folders for path in Path(folder).glob("migrations/[0-9][0-9][0-9][0-9]_*.py")]
    return max(files, default="")[:4]
