"""Installing the queue schema of the embedded broker; only `migrate` calls this.

pgmq ships as plain SQL, without CREATE EXTENSION. Running that SQL twice is not supported by its authors, so the
presence of `pgmq.meta` decides.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from korrigo_kit.credentials import role_password
from korrigo_kit.settings import DatabaseSettings

ROLE = "korrigo_broker"


def install(connection: psycopg.Connection[Any], settings: DatabaseSettings) -> bool:
    """Create role, schema and functions when they are missing; True when something was installed."""
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone() is not None
    statement = "ALTER ROLE {} LOGIN PASSWORD {}" if exists else "CREATE ROLE {} LOGIN PASSWORD {}"
    connection.execute(sql.SQL(statement).format(sql.Identifier(ROLE), sql.Literal(role_password(settings, ROLE))))
    if not exists:
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(ROLE)))
    found = connection.execute("SELECT to_regclass('pgmq.meta') IS NOT NULL").fetchone()
    if found is not None and found[0]:
        return False
    from pgmq.install import get_embedded_install_sql

    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS pgmq AUTHORIZATION {}").format(sql.Identifier(ROLE)))
    database = sql.Identifier(connection.info.dbname)
    with connection.transaction():
        # The script says CREATE SCHEMA IF NOT EXISTS, which asks for the right even where the schema exists.
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, sql.Identifier(ROLE)))
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(ROLE)))
        connection.execute(get_embedded_install_sql())
        connection.execute("RESET ROLE")
        connection.execute(sql.SQL("REVOKE CREATE ON DATABASE {} FROM {}").format(database, sql.Identifier(ROLE)))
    return True
