"""The data directory of an instance, `$KORRIGO_HOME`: where everything lies and who may read it.

Used by every command of the front door. Layout:

    $KORRIGO_HOME/            0700, as root 0711 so that the database user can pass through
    ├── admin-password        0600, first password of user admin
    ├── secrets/              0700, one generated secret per file (0600)
    ├── postgres/             0700, of the database user: data/ and socket/
    ├── blobs/  incidents/    0700
    ├── logs/NAME.log         one per child process; audit.log = what was stored in the trail; django.log = all in one
    └── run/                  0700, up.lock, state.json, sockets, samples/ (metrics of this start)

A socket's path may have 107 bytes at most (sun_path), so a long home gets a short runtime folder elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from korrigo import general_log
from korrigo_kit.errors import Invalid, StateConflict, Unavailable

SUN_PATH_BYTES = 107
LONGEST_SOCKET_NAME = 40  # room for names such as "rpc-grading.sock" or ".s.PGSQL.5432.lock"


def default_root(environ: Mapping[str, str]) -> Path:
    """Say where the data of this user lie: KORRIGO_HOME, else /var/lib/korrigo (root), else ~/.local/share."""
    if environ.get("KORRIGO_HOME"):
        return Path(environ["KORRIGO_HOME"]).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/korrigo")
    base = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "korrigo"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths of one instance; nothing is created before `prepare`."""

    root: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str] | None = None) -> Home:
        """Find the home that the environment names."""
        return cls(default_root(os.environ if environ is None else environ))

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def samples(self) -> Path:
        """Where the children count, so that what one had counted outlives it."""
        return self.run / "samples"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def state_file(self) -> Path:
        return self.run / "state.json"

    @property
    def admin_password_file(self) -> Path:
        return self.root / "admin-password"

    def prepare(self) -> None:
        """Create the folders; raises Unavailable HOME_NOT_WRITABLE naming the folder."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                # Only this folder is opened for passing through, never a parent.
                self.root.chmod(stat.S_IMODE(self.root.stat().st_mode) | 0o011)
            for folder in (self.run, self.logs, self.secrets, self.blobs, self.root / "incidents"):
                folder.mkdir(mode=0o700, exist_ok=True)
            # In an older home the name led to the log of the api.
            if (self.logs / general_log.NAME).is_symlink():
                (self.logs / general_log.NAME).unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(
                "HOME_NOT_WRITABLE", f"cannot make the data folder {self.root}: {error.strerror}"
            ) from error

    def secret(self, name: str) -> str:
        """Return a secret of this instance, made once, 43 characters, kept 0600."""
        return keep_secret(self.secrets / name)

    def socket_folder(self) -> Path:
        """Return (and make) the 0700 folder for sockets of this user: `run`, or a short one elsewhere."""
        if fits_a_socket(self.run):
            return self.run
        return short_folder(self.root, "run", os.geteuid(), os.getegid())

    def state(self) -> dict[str, Any] | None:
        """Read what the running `korrigo up` wrote about itself; None when there is none."""
        try:
            found = json.loads(self.state_file.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace run/state.json in one step, so that a reader never sees half of it."""
        replace_file(self.state_file, json.dumps(state, indent=1) + "\n", is_durable=False)

    def lock(self) -> Lock:
        """Take the one lock of this home; raises StateConflict HOME_IN_USE naming the holder."""
        return Lock(self.run / "up.lock", self.root)


class Lock:
    """An flock that the kernel gives back when its holder dies, however it dies."""

    def __init__(self, path: Path, root: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise StateConflict(
                "HOME_IN_USE",
                f"another `korrigo up` (process {holder}) runs on {root}; "
                "stop it, or set KORRIGO_HOME and KORRIGO_HTTP__PORT for a second instance",
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


def is_in_use(home: Home) -> bool:
    """Tell whether a `korrigo up` holds this home now; does not keep the lock."""
    try:
        descriptor = os.open(home.run / "up.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def keep_secret(path: Path, value: str | None = None) -> str:
    """Return the text of a 0600 file, writing `value` or a random one when it does not exist yet."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        chosen = value or secrets.token_urlsafe(32)
        replace_file(path, chosen + "\n")
        return chosen


def replace_file(path: Path, text: str, *, is_durable: bool = True) -> None:
    """Write a 0600 file in one step, by default such that it survives a loss of power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        if is_durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def fits_a_socket(folder: Path) -> bool:
    """Tell whether a socket in this folder stays below the kernel's limit for paths."""
    return len(os.fsencode(folder)) + 1 + LONGEST_SOCKET_NAME <= SUN_PATH_BYTES


def short_folder(root: Path, purpose: str, user: int, group: int) -> Path:
    """Make a short 0700 folder of `user` for sockets; raises Invalid RUNTIME_FOLDER_UNSAFE on a foreign one.

    The name is derived from the home, so every process of the instance finds the same one.
    """
    mark = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") if os.geteuid() != 0 else Path("/tmp")  # noqa: S108
    folder = base / f"korrigo-{user}-{mark}-{purpose}"
    if not fits_a_socket(folder):
        folder = Path("/tmp") / folder.name  # noqa: S108
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, user, group)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or stat.S_IMODE(found.st_mode) != 0o700:
            raise Invalid(
                "RUNTIME_FOLDER_UNSAFE", f"{folder} exists but is not a 0700 folder of user {user}; remove it"
            ) from None
    return folder
