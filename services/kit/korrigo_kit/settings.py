"""Settings: `KORRIGO_<SECTION>__<KEY>` or a file named by `KORRIGO_<SECTION>__<KEY>_FILE`.

An unknown variable is refused at boot, because a mistyped one that is silently ignored costs a night. What lies in a
file may change while a process runs: `Watched` reads it again, so that a secret is changed without a restart.
Kit declares the sections that every room shares; a room adds its own by a model with a `section` name, and the
front door hands all of them to `load`, so that rooms may share one environment. A program that cannot import the rooms
names their sections instead, and leaves it to the rooms to refuse what is wrong in them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError

log = logging.getLogger("korrigo.settings")

PREFIX = "KORRIGO_"
# The only variables without a section (decisions.md, Libraries and numbers).
UNSECTIONED = {"KORRIGO_HOME", "KORRIGO_ADMIN_PASSWORD"}


# Per file its inode, time and size; None = not there.
Mark = tuple[tuple[int, int, int] | None, ...]


class SettingsError(Exception):
    """A setting is unknown, missing or wrong; the message names the variable and never its value."""


class Section(BaseModel):
    """One section of the settings; frozen, unknown keys refused, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str] = ""
    # Keys whose values came from files, with their variables; the others as they were given.
    _files: dict[str, tuple[str, Path]] = PrivateAttr(default_factory=dict)
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    # What the files were when they were read: a watch that begins later still sees that they changed.
    _mark: Mark = PrivateAttr(default_factory=tuple)

    @property
    def files(self) -> list[Path]:
        """List the files that hold values of this section."""
        return [path for _, path in self._files.values()]

    def read_again(self) -> Self:
        """Return the section with its files as they are now; raises SettingsError."""
        mark = _mark(self.files)
        values = self._given | {key: _read(variable, str(path)) for key, (variable, path) in self._files.items()}
        found = _validate(type(self), values)
        found._files, found._given, found._mark = self._files, self._given, mark
        return found


class DatabaseSettings(Section):
    section: ClassVar[str] = "database"
    url: SecretStr = Field(SecretStr(""), description="PostgreSQL URL; the rooms' roles are derived from it.")
    migrate_url: SecretStr | None = Field(None, description="URL used by `migrate` only; default: the same URL.")
    ingest_url: SecretStr | None = Field(None, description="URL of role korrigo_ingest, when it is not derived.")
    grading_url: SecretStr | None = Field(None, description="URL of role korrigo_grading, when not derived.")
    render_url: SecretStr | None = Field(None, description="URL of role korrigo_render, when it is not derived.")
    audit_url: SecretStr | None = Field(None, description="URL of role korrigo_audit, when it is not derived.")
    pool_size: int = Field(10, ge=1, description="Connections kept per room and process.")
    pool_overflow: int = Field(20, ge=0, description="Connections opened beyond the pool under load.")
    connect_timeout_seconds: int = Field(3, ge=1, description="Longest wait for a new connection.")
    statement_timeout_seconds: float = Field(15, gt=0, description="Longest statement.")
    lock_timeout_seconds: float = Field(3, gt=0, description="Longest wait for a row lock.")
    idle_in_transaction_seconds: float = Field(30, gt=0, description="Longest idle time inside a transaction.")


class BrokerSettings(Section):
    section: ClassVar[str] = "broker"
    url: SecretStr = Field(
        SecretStr("pgmq://"), description="amqp:// URL of RabbitMQ, or pgmq:// to use the database itself."
    )
    management_url: SecretStr | None = Field(None, description="RabbitMQ management API, for unacked counts.")


class BlobSettings(Section):
    section: ClassVar[str] = "blobs"
    url: str = Field("", description="file:///folder or s3://bucket[/prefix].")
    endpoint: str | None = Field(None, description="Address of the S3 server when it is not Amazon's.")
    access_key_id: SecretStr | None = Field(None, description="S3 access key.")
    secret_access_key: SecretStr | None = Field(None, description="S3 secret key.")
    region: str | None = Field(None, description="S3 region.")


class HttpSettings(Section):
    section: ClassVar[str] = "http"
    host: str = Field("127.0.0.1", description="Address to listen on; another than loopback needs TLS or a proxy.")
    port: int = Field(8088, ge=0, le=65535, description="Port; 0 = any free one, the ready line tells it.")
    public_url: str = Field("", description="Address that people use, printed on score pages.")
    allowed_origins: str = Field("", description="Comma-separated origins of browsers besides our own.")
    allowed_hosts: str = Field("", description="Comma-separated Host names besides loopback and the public URL's.")
    trusted_proxies: str = Field("", description="Comma-separated addresses whose X-Forwarded-* is believed.")
    tls_cert: str | None = Field(None, description="Certificate file (PEM).")
    tls_key: str | None = Field(None, description="Key file (PEM).")
    threads: int = Field(40, ge=4, description="Requests handled at once per process.")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of /metrics in processes without an API, such as a worker; 0 = none."
    )
    metrics_cache_seconds: float = Field(10, ge=0, description="Longest age of gauges at /metrics.")


class RpcSettings(Section):
    section: ClassVar[str] = "rpc"
    secret: SecretStr = Field(SecretStr(""), description="Shared secret (32 characters or more) between rooms.")
    previous_secret: SecretStr = Field(
        SecretStr(""), description="Accepted besides the secret while the rooms change from one to the other."
    )
    listen: str = Field("", description="Where this room listens: host:port or unix:/path; default: its own address.")
    ingest: str = Field("", description="Address of ingest: host:port or unix:/path.")
    grading: str = Field("", description="Address of grading.")
    render: str = Field("", description="Address of render.")
    audit: str = Field("", description="Address of audit.")
    deadline_seconds: float = Field(5, gt=0, description="Deadline of a call that names none.")
    reflection: bool = Field(False, description="Serve gRPC reflection, for development.")


class AuthSettings(Section):
    section: ClassVar[str] = "auth"
    signing_key: SecretStr | None = Field(None, description="Ed25519 private key (PEM); only grading needs it.")
    public_keys: str | None = Field(
        None,
        description="Ed25519 public keys or certificates (PEM, one after another) to verify with; a line"
        " `Accepted-Until: TIME` (RFC 3339) before one ends it. That of the signing key is always among them.",
    )
    token_seconds: int = Field(14400, ge=60, description="Life of an access token (domain.md 1.20).")


class JobSettings(Section):
    section: ClassVar[str] = "jobs"
    lease_seconds: float = Field(30, gt=0, description="Lease of a claimed job.")
    heartbeat_seconds: float = Field(10, gt=0, description="Time between renewals of the lease.")
    max_attempts: int = Field(3, ge=1, description="Failures of the work itself before quarantine.")
    max_lost_leases: int = Field(10, ge=1, description="Lost workers before quarantine.")
    limit_seconds: float = Field(600, gt=0, description="Longest run of one attempt.")
    backoff_seconds: float = Field(2, gt=0, description="Wait before the second attempt; doubles after each.")
    sweep_seconds: float = Field(10, gt=0, description="Time between two sweeps.")
    concurrency: int = Field(2, ge=1, description="Pool children of one worker.")
    stuck_seconds: float = Field(60, gt=0, description="Work that is not healed after this time counts as stuck.")
    stall_seconds: float = Field(20, gt=0, description="A worker that claims nothing for so long beside due work ends.")


class LogSettings(Section):
    section: ClassVar[str] = "log"
    level: str = Field("INFO", description="Lowest level written.")
    directory: str | None = Field(None, description="Folder of rotating files; default: standard output only.")
    audit_path: str | None = Field(
        None, description="Rotating file of the audit log, written by audit's worker; default: standard output."
    )
    general_path: str | None = Field(
        None,
        description="File that every process appends its lines to as well; whoever sets it rotates it, by renaming"
        " (`korrigo up` does both).",
    )


class OtelSettings(Section):
    section: ClassVar[str] = "otel"
    endpoint: str | None = Field(None, description="OTLP gRPC address for traces; none = no export.")


KIT_SECTIONS: tuple[type[Section], ...] = (
    DatabaseSettings,
    BrokerSettings,
    BlobSettings,
    HttpSettings,
    RpcSettings,
    AuthSettings,
    JobSettings,
    LogSettings,
    OtelSettings,
)

S = TypeVar("S", bound=Section)
# A changed file is in use after this time at most.
WATCH_SECONDS = 1.0


class Watched(Generic[S]):
    """A section as its files say now: `now` is a second old at most, `newer` looks at once."""

    def __init__(self, section: S) -> None:
        self._section = section
        self._looked_at = -1e9
        self._lock = threading.Lock()

    def now(self) -> S:
        """Return the section, a second old at most."""
        if self._section.files and time.monotonic() - self._looked_at > WATCH_SECONDS:
            self._look()
        return self._section

    def latest(self) -> S:
        """Look at once and return the section, where a second matters: what signs must be what is accepted."""
        if self._section.files:
            self._look()
        return self._section

    def newer(self, than: S) -> S | None:
        """Look at the files; return the section if it is another than the caller's, whoever noticed it first."""
        if self._section.files:
            self._look()
        return self._section if self._section is not than else None

    def _look(self) -> None:
        """Read what changed; a file that cannot be read leaves everything as it was."""
        with self._lock:
            self._looked_at = time.monotonic()
            if _mark(self._section.files) == self._section._mark:
                return
            try:
                self._section = self._section.read_again()
            except SettingsError as error:
                log.error("changed settings are not taken: %s", error)


def _mark(files: Iterable[Path]) -> Mark:
    marks: list[tuple[int, int, int] | None] = []
    for path in files:
        try:
            found = path.stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(marks)


@dataclass(frozen=True)
class Origin:
    """Where a value came from: a variable, a file or the default."""

    variable: str
    kind: str


@dataclass(frozen=True)
class Settings:
    """All sections, validated; `get` hands one out by its model."""

    sections: Mapping[str, Section]
    origins: Mapping[str, Origin]
    home: Path | None = None
    admin_password: SecretStr | None = None
    _watched: dict[str, Watched[Any]] = field(default_factory=dict, repr=False, compare=False)

    def watched(self, model: type[S]) -> Watched[S]:
        """Return the watch over a section's files, one for everybody who asks."""
        return self._watched.setdefault(model.section, Watched(self.get(model)))

    def get(self, model: type[S]) -> S:
        """Return a section by its model; it must have been given to `load`."""
        found = self.sections[model.section]
        assert isinstance(found, model)
        return found

    @property
    def database(self) -> DatabaseSettings:
        return self.get(DatabaseSettings)

    @property
    def broker(self) -> BrokerSettings:
        return self.get(BrokerSettings)

    @property
    def blobs(self) -> BlobSettings:
        return self.get(BlobSettings)

    @property
    def http(self) -> HttpSettings:
        return self.get(HttpSettings)

    @property
    def rpc(self) -> RpcSettings:
        return self.get(RpcSettings)

    @property
    def auth(self) -> AuthSettings:
        return self.watched(AuthSettings).now()

    @property
    def jobs(self) -> JobSettings:
        return self.get(JobSettings)

    @property
    def log(self) -> LogSettings:
        return self.get(LogSettings)

    @property
    def otel(self) -> OtelSettings:
        return self.get(OtelSettings)

    def show(self) -> list[tuple[str, str, str]]:
        """List (variable, value or ***, origin) of every setting, for `korrigo config show`."""
        rows = []
        for name, section in self.sections.items():
            for key in type(section).model_fields:
                variable = f"{PREFIX}{name.upper()}__{key.upper()}"
                value = getattr(section, key)
                text = "***" if isinstance(value, SecretStr) and value.get_secret_value() else str(value)
                origin = self.origins.get(variable)
                rows.append((variable, text, origin.kind if origin else "default"))
        return rows


def load(
    rooms: Iterable[type[Section]] = (), environ: Mapping[str, str] | None = None, *, elsewhere: Collection[str] = ()
) -> Settings:
    """Read the environment; raises SettingsError for an unknown variable or a wrong value.

    `elsewhere`: names of sections that other programs read from the same environment; their variables are passed over.
    """
    env = dict(os.environ if environ is None else environ)
    models = {model.section: model for model in (*KIT_SECTIONS, *rooms)}
    raw: dict[str, dict[str, Any]] = {name: {} for name in models}
    files: dict[str, dict[str, tuple[str, Path]]] = {name: {} for name in models}
    marks: dict[str, Mark] = dict.fromkeys(models, ())
    origins: dict[str, Origin] = {}
    unknown = []
    for variable, value in env.items():
        if not variable.startswith(PREFIX) or variable in UNSECTIONED or _section_of(variable) in elsewhere:
            continue
        found = _resolve(variable, models)
        if found is None:
            unknown.append(variable)
            continue
        section, key, is_file = found
        if is_file:
            files[section][key] = (variable, Path(value))
            marks[section] = (*marks[section], *_mark([Path(value)]))
        raw[section][key] = _read(variable, value) if is_file else value
        canonical = f"{PREFIX}{section.upper()}__{key.upper()}"
        origins[canonical] = Origin(variable, "file" if is_file else "environment")
    if unknown:
        names = ", ".join(sorted(unknown))
        raise SettingsError(f"unknown settings: {names}; `korrigo config show` lists the known ones")
    sections = {name: _validate(model, raw[name]) for name, model in models.items()}
    for name, loaded in sections.items():
        loaded._files = files[name]
        loaded._given = {key: value for key, value in raw[name].items() if key not in files[name]}
        loaded._mark = marks[name]
    password = env.get("KORRIGO_ADMIN_PASSWORD")
    home = env.get("KORRIGO_HOME")
    return Settings(
        sections=sections,
        origins=origins,
        home=Path(home) if home else None,
        admin_password=SecretStr(password) if password else None,
    )


def _section_of(variable: str) -> str:
    return variable[len(PREFIX) :].lower().partition("__")[0]


def _resolve(variable: str, models: Mapping[str, type[Section]]) -> tuple[str, str, bool] | None:
    section, separator, key = variable[len(PREFIX) :].lower().partition("__")
    if not separator or section not in models:
        return None
    fields = models[section].model_fields
    if key in fields:
        return section, key, False
    if key.endswith("_file") and key[: -len("_file")] in fields:
        return section, key[: -len("_file")], True
    return None


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise SettingsError(f"{variable}: cannot read the file it names ({error.strerror})") from None


def _validate(model: type[S], values: dict[str, Any]) -> S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = "__".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{PREFIX}{model.section.upper()}__{key}: {first['msg']}") from None
