"""Turning the switches of the whole installation, in every room and in one transaction.

Called by `korrigo read-only` and by a restore. It logs in as the installation's owner, because the tables belong to
four rooms; what was turned is told to the audit trail by grading.
"""

from __future__ import annotations

from korrigo import installation
from korrigo_kit import outbox
from korrigo_kit.credentials import migrate_url
from korrigo_kit.db import Database, Tx
from korrigo_kit.settings import Settings
from korrigo_protos.grading.v1 import events_pb2

# The stream of what happens to the whole installation.
SYSTEM = ("system", "installation")


def owner_database(settings: Settings) -> Database:
    """Return grading's schema as the owner of the installation sees it; the caller closes it."""
    return Database("grading", migrate_url(settings.database), settings.database, application="korrigo-cli")


def turn(tx: Tx, name: str, value: int) -> None:
    """Set a switch in every room."""
    for room in installation.ROOMS:
        tx.run(
            f"INSERT INTO {room}.switches (name, value) VALUES (%s, %s)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value, turned_at = clock_timestamp()",
            (name, value),
        )


def tell(tx: Tx, action: str, metadata: dict[str, object], actor_id: str = outbox.SYSTEM_ACTOR) -> None:
    """Write an event of the installation's own stream; the transaction must be grading's."""
    outbox.emit(
        tx,
        type="installation_changed",
        subject=SYSTEM,
        payload=events_pb2.Recorded(),
        actor_id=actor_id,
        action=action,
        metadata=metadata,
    )
