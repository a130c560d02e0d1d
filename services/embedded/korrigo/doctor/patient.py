"""The installation that is looked at: its facts, each read once and only when asked for. Built by `korrigo doctor`.

Works on a home (`korrigo up`) and on settings alone (production), with any part down: what cannot be known raises
Blind. Connections are read-only by their own session settings, short of patience, and named korrigo:doctor.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.rows import dict_row

from korrigo import installation, processes, rooms
from korrigo.doctor.causes import Blind
from korrigo.doctor.lines import Lines
from korrigo.doctor.monitors import Monitors
from korrigo.home import Home, is_in_use
from korrigo_kit.errors import KorrigoError
from korrigo_kit.settings import Settings, SettingsError

if TYPE_CHECKING:
    from korrigo_kit.room import Process, Runtime

APPLICATION = "korrigo:doctor"
_CONNECT_SECONDS = 3
_OPTIONS = {
    "default_transaction_read_only": "on",
    "statement_timeout": "8000",
    "lock_timeout": "1000",
    "idle_in_transaction_session_timeout": "10000",
}
# What PostgreSQL says when every connection is taken; at that moment it sends no SQLSTATE that psycopg keeps.
_FULL = ("too many clients", "remaining connection slots", "too many connections")
T = TypeVar("T")
Row = dict[str, Any]


class Patient:
    """One installation, for the length of one command."""

    def __init__(self, home: Home, *, prometheus: str = "", alertmanager: str = "") -> None:
        self.home = home
        self.is_embedded = installation.is_embedded(os.environ)
        self.has_instance = not self.is_embedded or installation.database_url_file(home).exists()
        if self.is_embedded and self.has_instance:
            installation.attach()
        self._given = (prometheus, alertmanager)
        self._connections: dict[str, psycopg.Connection[Row]] = {}

    # ------------------------------------------------------------------------------------------ what it is
    @cached_property
    def settings(self) -> Settings:
        """The settings; raises Blind when they are wrong."""
        try:
            return rooms.load_settings()
        except SettingsError as error:
            raise Blind(f"the settings: {error}") from None

    @property
    def mode(self) -> str:
        """Tell which remedies fit: embedded, stopped or production."""
        if not self.is_embedded:
            return "production"
        return "embedded" if self.is_up else "stopped"

    @cached_property
    def is_up(self) -> bool | None:
        """Tell whether `korrigo up` runs on this home; None in production, where nothing here knows."""
        return is_in_use(self.home) if self.is_embedded else None

    @cached_property
    def children(self) -> Mapping[str, int]:
        """The processes of `korrigo up`, by name."""
        state = (self.home.state() or {}) if self.is_up else {}
        return {name: int(pid) for name, pid in state.get("children", {}).items() if pid}

    @cached_property
    def restarts(self) -> Mapping[str, int]:
        """How often `korrigo up` had to start a child again."""
        state = (self.home.state() or {}) if self.is_up else {}
        return {name: int(count) for name, count in state.get("restarts", {}).items() if count}

    def is_child_well(self, name: str) -> bool:
        """Tell whether a child lives and is not stopped."""
        found = processes.stat(self.children.get(name, 0))
        return found is not None and found.state not in ("T", "t", "Z", "X")

    @cached_property
    def url(self) -> str:
        """The address of the product as this machine can ask it, empty when unknown."""
        if self.is_up:
            return str((self.home.state() or {}).get("url") or "")
        return "" if self.is_embedded else self.settings.http.public_url.rstrip("/")

    @cached_property
    def lines(self) -> Lines:
        """The recent log lines of this machine."""
        folders = [self.home.logs] if self.is_embedded else []
        try:
            directory = self.settings.log.directory
        except Blind:
            directory = None
        return Lines([*folders, *([Path(directory)] if directory else [])])

    @cached_property
    def monitors(self) -> Monitors:
        """Prometheus and Alertmanager, as far as their addresses are known."""
        from korrigo.settings import MonitoringSettings

        section = self.settings.get(MonitoringSettings)
        prometheus, alertmanager = self._given
        return Monitors(prometheus or section.prometheus_url, alertmanager or section.alertmanager_url)

    @cached_property
    def volumes(self) -> Mapping[str, Path]:
        """The folders that the product writes to on this machine, by what they hold."""
        from korrigo_ingest.settings import UploadSettings

        # The worker's own: a service is often given another.
        own = processes.environment_of(self.children["worker"]) if "worker" in self.children else {}
        found: dict[str, Path] = {"temporary files": Path(own.get("TMPDIR") or tempfile.gettempdir())}
        if self.is_embedded and self.home.root.exists():
            found |= {"home": self.home.root, "database": self.home.postgres / "data", "logs": self.home.logs}
        spool = self.settings.get(UploadSettings).spool
        if spool:
            found["uploads"] = Path(spool)
        blobs = urlsplit(self.settings.blobs.url)
        if blobs.scheme == "file":
            found["blobs"] = Path(unquote(blobs.path))
        return {name: folder for name, folder in found.items() if folder.exists()}

    # ------------------------------------------------------------------------------------------ the database
    @cached_property
    def database_error(self) -> str:
        """Why the database does not answer; empty when it does."""
        if not self.has_instance:
            return f"there is no instance in {self.home.root}"
        try:
            self._connection("")
        except psycopg.Error as error:
            return " ".join(str(error).split()) or type(error).__name__
        return ""

    @property
    def is_database_full(self) -> bool:
        """Tell whether the database answers, only that every connection is taken."""
        return any(words in self.database_error for words in _FULL)

    @property
    def is_database_up(self) -> bool:
        return not self.database_error

    def rows(self, sql: str, params: Mapping[str, Any] | None = None, *, room: str = "") -> list[Row]:
        """Ask the database, in a room's schema and role when one is named; raises Blind."""
        if not self.is_database_up and not self.is_database_full:
            raise Blind("the database does not answer")
        try:
            return self._connection(room).execute(sql, params).fetchall()
        except psycopg.errors.InsufficientPrivilege:
            raise Blind("the database refuses this role") from None
        except psycopg.errors.UndefinedTable:
            raise Blind("a schema is behind this release: run `korrigo migrate`") from None
        except psycopg.Error as error:
            raise Blind(f"the database: {type(error).__name__}") from None

    def row(self, sql: str, params: Mapping[str, Any] | None = None, *, room: str = "") -> Row:
        """Ask for a row that is always there; raises Blind."""
        return self.rows(sql, params, room=room)[0]

    def _connection(self, room: str) -> psycopg.Connection[Row]:
        if room not in self._connections:
            try:
                self._connections[room] = self._open(self._url(room), room)
            except (psycopg.OperationalError, SettingsError):
                # Reserved connections are for the administrator, who can read every room's tables.
                if not room or not self.settings.database.url.get_secret_value():
                    raise
                self._connections[room] = self._open(self.settings.database.url.get_secret_value(), room)
        return self._connections[room]

    def _url(self, room: str) -> str:
        from korrigo_kit.credentials import room_url

        database = self.settings.database
        if room:
            return room_url(database, room)
        # Whoever may see most of the sessions; the rooms' roles see the state of their own only.
        given = database.url.get_secret_value()
        return given or room_url(database, "grading")

    def _open(self, url: str, room: str) -> psycopg.Connection[Row]:
        options = _OPTIONS | ({"search_path": room} if room else {})
        return psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name=APPLICATION,
            options=" ".join(f"-c {key}={value}" for key, value in options.items()),
            row_factory=dict_row,
        )

    # ------------------------------------------------------------------------------------------ the rooms
    @cached_property
    def _process(self) -> Process:
        from korrigo_kit.room import Process

        return Process.build(rooms.rooms(), self.settings)

    def room(self, name: str) -> Runtime:
        """Give a room's runtime, for the flows that look; raises Blind while the database is away."""
        if not self.is_database_up:
            raise Blind("the database does not answer")
        return self._process.runtimes[name]

    def ask(self, flow: Callable[[], T]) -> T:
        """Run a flow of a room that looks; raises Blind when something that it needs is away."""
        try:
            return flow()
        except KorrigoError as error:
            raise Blind(error.message) from None

    @cached_property
    def silent_rooms(self) -> Sequence[str]:
        """Rooms that have an address and do not answer there; raises Blind when no address is known."""
        addresses = {name: getattr(self.settings.rpc, name) for name in rooms.NAMES}
        known = [name for name, address in addresses.items() if address]
        if not known:
            raise Blind("no KORRIGO_RPC__ROOM names the address of a room")
        channels = self._process.runtimes["grading"].channels
        with ThreadPoolExecutor(len(known)) as pool:
            answers = list(pool.map(channels.is_serving, known))
        return [name for name, is_serving in zip(known, answers, strict=True) if not is_serving]

    @cached_property
    def queue_lengths(self) -> Mapping[tuple[str, ...], int] | None:
        """Messages in the broker's queues; None when the broker does not answer."""
        from korrigo_kit import queues

        names = [f"{kind}.{room}" for room in rooms.NAMES for kind in ("jobs", "events")]
        return within(10, "the broker", lambda: queues.lengths(self.settings, names))

    def close(self) -> None:
        """Close what was opened."""
        for connection in self._connections.values():
            connection.close()
        if "_process" in self.__dict__:
            self._process.close()


def within(seconds: float, what: str, act: Callable[[], T]) -> T:
    """Wait so long for an answer; raises Blind when none came. The thread is left behind: we end soon."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(act).result(timeout=seconds)
    except TookTooLong:
        raise Blind(f"{what} did not answer within {seconds:g} s") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
