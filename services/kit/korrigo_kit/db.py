"""The database: one transaction helper, one role and schema per room, hand-written hot statements.

Every room owns a `Database`; flows open `database.transaction(...)` and write SQL through the `Tx` they get.
Nothing else commits. The first statement of a transaction travels together with the SET LOCAL of the actor, so
the actor costs no round trip; when the pooled connection turns out to be dead on that first statement, nothing
has happened yet and it is repeated once on a fresh connection (a restarted PostgreSQL is not the user's business).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import psycopg
import sqlalchemy
from psycopg import errors as pg_errors
from psycopg.rows import dict_row
from sqlalchemy import exc as sa_errors
from sqlalchemy import pool as sa_pool

from korrigo_kit.errors import Bug, Invalid, Timeout, Unavailable
from korrigo_kit.settings import DatabaseSettings

UniqueViolation = pg_errors.UniqueViolation
CheckViolation = pg_errors.CheckViolation
Params = Mapping[str, Any] | Sequence[Any] | None

log = logging.getLogger("korrigo.db")


class Tx:
    """One open transaction; the only way to run SQL."""

    def __init__(self, database: Database, connection: psycopg.Connection[Any], actor: str, roles: str) -> None:
        self.database = database
        self.room = database.room
        self._connection = connection
        self._actor = (actor, roles)
        self._is_started = False
        self._after_commit: list[Callable[[], None]] = []

    def all(self, sql: str, params: Params = None) -> list[dict[str, Any]]:
        """Run a statement and return its rows as dicts."""
        cursor = self._execute(sql, params)
        return cursor.fetchall() if cursor.description else []

    def one(self, sql: str, params: Params = None) -> dict[str, Any] | None:
        """Run a statement and return its first row, or None."""
        cursor = self._execute(sql, params)
        return cursor.fetchone() if cursor.description else None

    def row(self, sql: str, params: Params = None) -> dict[str, Any]:
        """Run a statement that always answers one row; raises Bug when it does not."""
        found = self.one(sql, params)
        if found is None:
            raise Bug("ROW_EXPECTED", "a statement that must answer a row answered none")
        return found

    def run(self, sql: str, params: Params = None) -> int:
        """Run a statement and return how many rows it touched."""
        return self._execute(sql, params).rowcount

    def many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run a statement once per row, pipelined."""
        if not rows:
            return
        self._start()
        with self._connection.cursor() as cursor:
            cursor.executemany(sql, rows)  # type: ignore[arg-type]

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run a block that may fail without losing the transaction."""
        self._start()
        with self._connection.transaction():
            yield

    def after_commit(self, action: Callable[[], None]) -> None:
        """Have something done once the commit succeeded; never for anything that must not be lost."""
        self._after_commit.append(action)

    def _start(self) -> None:
        if not self._is_started:
            self._execute("SELECT 1", None)

    def _execute(self, sql: str, params: Params) -> psycopg.Cursor[dict[str, Any]]:
        cursor = self._connection.cursor(row_factory=dict_row)
        if self._is_started:
            return cursor.execute(sql, params)
        with self._connection.pipeline():
            self._connection.execute(
                "SELECT set_config('app.actor', %s, true), set_config('app.roles', %s, true)", self._actor
            )
            cursor.execute(sql, params)
        self._is_started = True
        return cursor

    @property
    def is_started(self) -> bool:
        return self._is_started


class Database:
    """The connections of one room in one process; create it after a spawn, never before a fork."""

    def __init__(
        self,
        room: str,
        url: str,
        settings: DatabaseSettings,
        *,
        application: str = "korrigo",
        url_now: Callable[[], str] | None = None,
    ) -> None:
        self.room = room
        self.url = url
        self._url_now = url_now
        options = {
            "search_path": room,
            "statement_timeout": f"{int(settings.statement_timeout_seconds * 1000)}",
            "lock_timeout": f"{int(settings.lock_timeout_seconds * 1000)}",
            "idle_in_transaction_session_timeout": f"{int(settings.idle_in_transaction_seconds * 1000)}",
        }
        self._connect_arguments = {
            "conninfo": url,
            "options": " ".join(f"-c {key}={value}" for key, value in options.items()),
            "application_name": f"{application}:{room}",
            "connect_timeout": settings.connect_timeout_seconds,
        }
        self._pool = sa_pool.QueuePool(
            self.connect,  # type: ignore[arg-type]
            pool_size=settings.pool_size,
            max_overflow=settings.pool_overflow,
            timeout=settings.connect_timeout_seconds,
            use_lifo=True,
        )

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection outside the pool (LISTEN, migrations); the caller closes it.

        One that is refused is tried again when the password has changed since.
        """
        try:
            return psycopg.connect(**self._connect_arguments)  # type: ignore[arg-type]
        except psycopg.OperationalError:
            url = self._url_now() if self._url_now is not None else self.url
            if url == self.url:
                raise
            self.url = self._connect_arguments["conninfo"] = url
            return psycopg.connect(**self._connect_arguments)  # type: ignore[arg-type]

    @contextmanager
    def transaction(self, *, actor: str = "", roles: Sequence[str] = ()) -> Iterator[Tx]:
        """Run a block in one transaction: committed at its end, rolled back when it raises.

        Raises Unavailable (DATABASE_UNAVAILABLE, DATABASE_BUSY) and Timeout (DATABASE_TIMEOUT); unique and check
        violations pass through for the caller to name.
        """
        with _translated():
            fairy = self._checkout()
            tx = _RetryingTx(self, fairy, actor, ",".join(roles))
            try:
                yield tx
                if tx.is_started:
                    tx.commit()
            except BaseException:
                tx.rollback()
                raise
            finally:
                tx.close()
        for action in tx.take_after_commit():
            action()

    def forget_pool(self) -> None:
        """Drop every idle connection; those in use end with their transactions."""
        old, self._pool = self._pool, self._pool.recreate()
        old.dispose()

    def _checkout(self) -> sa_pool.PoolProxiedConnection:
        return self._pool.connect()

    def is_reachable(self) -> bool:
        """Tell whether the database answers."""
        try:
            with self.transaction() as tx:
                tx.one("SELECT 1 AS ok")
        except (Unavailable, Timeout):
            return False
        return True

    def close(self) -> None:
        """Close every pooled connection."""
        self._pool.dispose()


class _RetryingTx(Tx):
    """A Tx that replaces a connection found dead before anything ran on it."""

    def __init__(self, database: Database, fairy: sa_pool.PoolProxiedConnection, actor: str, roles: str) -> None:
        self._fairy = fairy
        self._is_dropped = False
        super().__init__(database, _driver(fairy), actor, roles)

    def _execute(self, sql: str, params: Params) -> psycopg.Cursor[dict[str, Any]]:
        if self._is_started:
            return super()._execute(sql, params)
        try:
            return super()._execute(sql, params)
        except psycopg.OperationalError:
            if not self._connection.closed and not self._connection.broken:
                raise
            self._replace_connection()
            return super()._execute(sql, params)

    def _replace_connection(self) -> None:
        # Every pooled connection of a restarted server is dead: drop them all rather than meet them one by one.
        self._drop()
        self.database.forget_pool()
        self._fairy = self.database._checkout()
        self._is_dropped = False
        self._connection = _driver(self._fairy)

    def _drop(self) -> None:
        if not self._is_dropped:
            self._is_dropped = True
            self._fairy.invalidate()

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        try:
            self._connection.rollback()
        except psycopg.Error:
            self._drop()

    def close(self) -> None:
        if self._connection.closed:
            self._drop()
        if not self._is_dropped:
            self._fairy.close()

    def take_after_commit(self) -> list[Callable[[], None]]:
        return self._after_commit


def _driver(fairy: sa_pool.PoolProxiedConnection) -> psycopg.Connection[Any]:
    connection = fairy.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (pg_errors.QueryCanceled, pg_errors.IdleInTransactionSessionTimeout) as error:
        raise Timeout("DATABASE_TIMEOUT", "the database did not answer in time") from error
    except (pg_errors.LockNotAvailable, pg_errors.DeadlockDetected, pg_errors.SerializationFailure) as error:
        raise Unavailable("DATABASE_BUSY", "somebody else is changing the same thing; try again") from error
    except (psycopg.DataError, UnicodeEncodeError) as error:
        # A NUL or a lone surrogate in a text, a number out of range: the value cannot be stored, whoever sent it.
        raise Invalid("INVALID_VALUE", "a value holds a character or a number that cannot be stored") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, sa_errors.TimeoutError) as error:
        log.warning("database unavailable: %s", type(error).__name__)
        raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached; try again") from error


def with_user(url: str, user: str, password: str) -> str:
    """Replace user and password of a postgresql:// URL."""
    parsed = sqlalchemy.make_url(url)
    target = f"/{parsed.database or ''}"
    host = f"{parsed.host or ''}{f':{parsed.port}' if parsed.port else ''}"
    query = "&".join(
        f"{quote(key)}={quote(item, safe='')}"
        for key, value in parsed.query.items()
        for item in ([value] if isinstance(value, str) else value)
    )
    return f"postgresql://{quote(user)}:{quote(password, safe='')}@{host}{target}{f'?{query}' if query else ''}"
