"""What is unsafe for real exams, though everything works: settings, secrets, rights (`korrigo doctor --deploy`).

Where `korrigo up` runs here, the settings are those that its api was started with, not those of this terminal.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from korrigo import processes, rooms
from korrigo.doctor.causes import Blind
from korrigo.doctor.health import Answer, Check
from korrigo.doctor.patient import Patient
from korrigo.settings import BackupSettings
from korrigo_kit.settings import Settings, SettingsError, load

DEPLOY = "fit for real exams"
# What examples, images and habits leave behind.
_WELL_KNOWN = {
    "admin", "changeme", "change-me", "default", "dev", "example", "guest", "korrigo", "minioadmin", "password",
    "passe123", "postgres", "rabbitmq", "root", "secret", "test", "user",
}  # fmt: skip
_MIN_PASSWORD = 12
_MIN_SECRET = 32


def _settings(patient: Patient) -> Settings:
    pid = patient.children.get("api")
    environ = processes.environment_of(pid) if pid else {}
    if not environ:
        return patient.settings
    try:
        return load(rooms.sections(), environ)
    except SettingsError as error:
        raise Blind(f"the settings of the running api: {error}") from None


def _is_here(host: str | None) -> bool:
    """Tell whether an address is this machine's own: loopback, or a socket in the file system."""
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(patient: Patient) -> Answer:
    http = _settings(patient).http
    if not http.public_url:
        if patient.is_embedded and _is_here(http.host):
            return None, "only this machine can reach it"
        return False, "KORRIGO_HTTP__PUBLIC_URL is not set: score pages print no address, links lead nowhere"
    url = urlsplit(http.public_url)
    if url.scheme == "https" or _is_here(url.hostname):
        return True, http.public_url
    return False, f"{http.public_url}: passwords and sessions cross the network in clear"


def _weakness(value: str, least: int) -> str:
    """Say why a secret is none; empty when it may be one."""
    if value.lower() in _WELL_KNOWN:
        return "is a well-known word"
    if len(value) < least:
        return f"has fewer than {least} characters"
    return "repeats itself" if len(set(value)) < 6 else ""


def _secrets(patient: Patient) -> Answer:
    settings = _settings(patient)
    asked: list[tuple[str, str, int]] = [("KORRIGO_RPC__SECRET", settings.rpc.secret.get_secret_value(), _MIN_SECRET)]
    for name, text in (
        ("KORRIGO_DATABASE__URL", settings.database.url.get_secret_value()),
        ("KORRIGO_BROKER__URL", settings.broker.url.get_secret_value()),
    ):
        url = urlsplit(text)
        # A database that asks for no password is reached by a socket whose folder is the lock.
        if url.scheme != "pgmq" and (url.password or not _is_here(_host(url))):
            asked.append((name, unquote(url.password or ""), _MIN_PASSWORD))
    if settings.blobs.url.startswith("s3:") and settings.blobs.secret_access_key:
        key = settings.blobs.secret_access_key.get_secret_value()
        asked.append(("KORRIGO_BLOBS__SECRET_ACCESS_KEY", key, _MIN_PASSWORD))
    weak = [f"{name} {why}" for name, value, least in asked if (why := _weakness(value, least))]
    return not weak, "; ".join(weak) or f"{len(asked)} secrets, none of them short or well known"


def _host(url: SplitResult) -> str | None:
    # A socket's folder stands in the query, or escaped in the place of the host.
    return None if "host=/" in unquote(url.query) else unquote(url.hostname or "")


def _transport(patient: Patient) -> Answer:
    settings = _settings(patient)
    database = urlsplit(settings.database.url.get_secret_value())
    broker = urlsplit(settings.broker.url.get_secret_value())
    endpoint = urlsplit(settings.blobs.endpoint or "")
    bare = []
    is_safe = any(f"sslmode={mode}" in database.query for mode in ("require", "verify-ca", "verify-full"))
    if not _is_here(_host(database)) and not is_safe:
        bare.append(f"the database at {database.hostname} (no sslmode=verify-full)")
    if broker.scheme == "amqp" and not _is_here(broker.hostname):
        bare.append(f"the broker at {broker.hostname}")
    if endpoint.scheme == "http" and not _is_here(endpoint.hostname):
        bare.append(f"the object store at {endpoint.hostname}")
    return not bare, "without encryption: " + ", ".join(bare) if bare else "nothing leaves this machine unencrypted"


def _debugging(patient: Patient) -> Answer:
    settings = _settings(patient)
    on = [f"KORRIGO_LOG__LEVEL={settings.log.level}"] if settings.log.level.upper() == "DEBUG" else []
    on += ["KORRIGO_RPC__REFLECTION"] if settings.rpc.reflection else []
    return not on, ", ".join(on) or "off"


def _rights(patient: Patient) -> Answer:
    if not patient.is_embedded:
        return None, "production: no home"
    home = patient.home
    # The home itself may be passed through (the database's own user has to) and listed: it holds names of folders.
    allowed = {home.root: 0o055}
    folders = (home.root, home.secrets, home.blobs, home.logs, home.root / "incidents", home.root / "backups")
    wide = [str(folder) for folder in folders if _rights_of(folder) & 0o077 & ~allowed.get(folder, 0)]
    wide += [str(file) for file in (*_files(home.secrets), home.admin_password_file) if _rights_of(file) & 0o077]
    return not wide, f"others may read or change {', '.join(wide)}" if wide else "the data are this user's alone"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if os.access(folder, os.R_OK | os.X_OK) else []


def _rights_of(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


def _user(patient: Patient) -> Answer:
    pid = patient.children.get("api")
    try:
        owner = (processes.PROC / str(pid)).stat().st_uid if pid else os.geteuid()
    except OSError:
        return None, "the api has just ended"
    who = "the product" if pid else "this command"
    return owner != 0, f"{who} runs as root" if owner == 0 else f"{who} runs as user {owner}"


def _backups(patient: Patient) -> Answer:
    backup = _settings(patient).get(BackupSettings)
    if not patient.is_embedded and not backup.directory:
        return None, "made by other tools; `korrigo doctor scenario storage` tells their age"
    if not backup.nightly:
        return False, "KORRIGO_BACKUP__NIGHTLY is off"
    directory = Path(backup.directory) if backup.directory else patient.home.root / "backups"
    place = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if patient.home.root.exists() and place.stat().st_dev == patient.home.root.stat().st_dev:
        return False, f"{directory} lies on the disk of the data, and goes with it"
    return True, f"every night to {directory}"


def _check(name: str, ask: Callable[[Patient], Answer], hint: str) -> Check:
    return Check(name, DEPLOY, ask, hint)


CHECKS = (
    _check("address", _address, "set KORRIGO_HTTP__PUBLIC_URL to the https address that people use"),
    _check("secrets", _secrets, "korrigo secrets rotate"),
    _check("transport", _transport, "amqps://, https:// and sslmode=verify-full, or a network of the product's own"),
    _check("debugging", _debugging, "leave KORRIGO_LOG__LEVEL and KORRIGO_RPC__REFLECTION at their defaults"),
    _check("rights", _rights, "chmod -R go-rwx what is named"),
    _check("user", _user, "run it as a user of its own (docs/guides/one-machine.md)"),
    _check("backups", _backups, "set KORRIGO_BACKUP__DIRECTORY to a folder of another disk"),
)
