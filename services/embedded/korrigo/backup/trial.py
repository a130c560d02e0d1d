"""Is this database what the backup says? Asked of a scratch one before a backup counts, and of the new one before
a restore gives it the name.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from korrigo.backup import archive, servers, tables
from korrigo.backup.archive import Manifest
from korrigo.home import Home
from korrigo_kit.credentials import migrate_url
from korrigo_kit.db import Database
from korrigo_kit.errors import Invalid, StateConflict
from korrigo_kit.migrate import connect
from korrigo_kit.settings import Settings

# A store far away answers a question in some 20 ms.
_ASKED_AT_ONCE = 16
# A final PDF that counts, and an event that was never told: neither may come out of a backup.
_FINALS = "SELECT DISTINCT final_sha256 FROM grading.finalisations WHERE state = 'SUCCEEDED'"
_UNTOLD = (
    "SELECT count(*) FROM (SELECT subject_type, subject_id, source, max(source_seq) AS last_seq FROM audit.records"
    " GROUP BY 1, 2, 3) known JOIN (SELECT 'ingest' AS source, * FROM ingest.streams UNION ALL"
    " SELECT 'grading', * FROM grading.streams UNION ALL SELECT 'render', * FROM render.streams) told"
    " USING (source, subject_type, subject_id) WHERE known.last_seq > told.last_seq"
)


def heads() -> dict[str, str]:
    """Return the newest schema of each room that this release knows."""
    from korrigo.commands.migrate import plans

    return {plan.room: plan.head for plan in plans()}


def require_known_schemas(manifest: Manifest) -> None:
    """Refuse a backup of a later release; raises StateConflict NEWER_SCHEMA.

    One that a release of our own age made on a newer schema, after its code was rolled back, is good for us too.
    """
    known = heads()
    needed = {room: min(found, manifest.known_schemas.get(room, found)) for room, found in manifest.schemas.items()}
    newer = [f"{room} {found}" for room, found in needed.items() if found > known.get(room, "")]
    if newer or set(manifest.schemas) != set(known):
        raise StateConflict(
            "NEWER_SCHEMA",
            f"{manifest.name} is of Korrigo {manifest.product_version} ({', '.join(newer) or 'other rooms'});"
            " restore it with that release or a later one",
        )


def load_and_judge(home: Home, settings: Settings, root: Path, manifest: Manifest) -> None:
    """Load a checked backup into the empty database of these settings, migrate it, and compare.

    Raises Invalid BACKUP_LOAD_FAILED, BACKUP_INCOMPLETE or BACKUP_AUDIT_BROKEN.
    """
    from korrigo.commands.migrate import apply

    tables.load(settings.database, servers.programs(home), root / archive.DUMP)
    with connect(settings.database) as connection:
        found = tables.counts(connection)
        wrong = sorted(name for name in {*found, *manifest.counts} if found.get(name) != manifest.counts.get(name))
        if wrong:
            raise Invalid("BACKUP_INCOMPLETE", f"{manifest.name}: other row counts in {', '.join(wrong)}")
    # What an older backup needs to run here; on a trial this is the rehearsal of the migration too.
    apply(settings)
    judge(settings, manifest.name, lambda sha256: archive.object_path(root, sha256).exists())


def judge(settings: Settings, name: str, is_there: Callable[[str], bool]) -> int:
    """Compare a loaded database with itself and with its objects; returns how many objects it names.

    Raises Invalid BACKUP_INCOMPLETE or BACKUP_AUDIT_BROKEN.
    """
    with connect(settings.database) as connection:
        wanted = {*tables.objects(connection), *(row[0] for row in connection.execute(_FINALS).fetchall())}
        untold = connection.execute(_UNTOLD).fetchone()
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        found = list(pool.map(is_there, sorted(wanted)))
    absent = [sha256 for sha256, is_found in zip(sorted(wanted), found, strict=True) if not is_found]
    if absent:
        raise Invalid("BACKUP_INCOMPLETE", f"{name}: {len(absent)} objects are missing, {absent[0]} first")
    if untold is None or untold[0]:
        raise Invalid("BACKUP_AUDIT_BROKEN", f"{name}: the audit trail knows more than the rooms told")
    _require_whole_audit(settings, name)
    return len(wanted)


def _require_whole_audit(settings: Settings, name: str) -> None:
    from korrigo_audit.flows.verification import verify_stored

    database = Database("audit", migrate_url(settings.database), settings.database, application="korrigo-backup")
    try:
        verdict = verify_stored(database)
    finally:
        database.close()
    if not verdict.is_valid:
        first = verdict.findings[0]
        raise Invalid(
            "BACKUP_AUDIT_BROKEN",
            f"{name}: {first.code} in {first.subject_type} {first.subject_id}, {first.source}"
            f" {first.source_seq}; `korrigo audit verify` on the instance tells all",
        )


def rehearse(home: Home, settings: Settings, root: Path, manifest: Manifest) -> None:
    """Restore a checked backup into a scratch server and judge it there."""
    with servers.scratch(home, settings, manifest.postgres_major) as scratch:
        load_and_judge(home, scratch, root, manifest)
