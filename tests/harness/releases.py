"""The release before this one and the one after it, each as a folder of code that runs in this environment.

`PYTHONPATH` decides which code runs: an installed Korrigo is found through a .pth file, which comes after it. The
release before is the newest tag below this commit. As long as there is none, it is the last commit whose schema is
older than the one of 0.1.0: what was made with it must be carried over. The release after does not exist yet: it is
this one with one more migration per room, which adds whatever an expanding migration may add.
"""

from __future__ import annotations

import compileall
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from harness.instance import ROOMS

ROOT = Path(__file__).resolve().parents[2]
BEFORE_THE_FIRST_TAG = "f4c2c052f778910513d62a47e400577709d88bb5"
_FOLDERS = ("protos", *(f"services/{part}" for part in ("kit", "embedded", *ROOMS)))

_NEXT = '''"""What a release may do to a schema: add."""

from alembic import op

revision = "{revision}"
down_revision = "{head}"


def upgrade() -> None:
    """Give every table a column and an index on it, and the room a table."""
    op.execute("""
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = '{room}' AND tablename <> 'alembic_version' LOOP
            EXECUTE format('ALTER TABLE {room}.%I ADD COLUMN of_the_next_release integer NOT NULL DEFAULT 7', name);
            EXECUTE format('CREATE INDEX ON {room}.%I (of_the_next_release)', name);
        END LOOP;
    END $$;
    CREATE TABLE of_the_next_release (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, made_at timestamptz NOT NULL);
    """)
'''


class NoHistory(Exception):
    """This checkout does not hold the commit of the release before (a shallow clone, an unpacked archive)."""


@dataclass(frozen=True)
class Release:
    """A folder of code: what it is called, what to put on PYTHONPATH, the newest schema of each room."""

    name: str
    folder: Path

    @property
    def python_path(self) -> str:
        """The value of PYTHONPATH that runs it."""
        return os.pathsep.join(str(self.folder / part) for part in _FOLDERS)

    @property
    def heads(self) -> dict[str, str]:
        """The newest schema of each room."""
        return {room: max(path.name[:4] for path in self._migrations(room).glob("0*_*.py")) for room in ROOMS}

    def _migrations(self, room: str) -> Path:
        return self.folder / "services" / room / f"korrigo_{room}" / "migrations"


def this() -> Release:
    """Return the checkout itself."""
    return Release("this one", ROOT)


def before(folder: Path) -> Release:
    """Unpack the release before this one; raises NoHistory."""
    name = _newest_tag() or BEFORE_THE_FIRST_TAG
    packed = _git("archive", "--format=tar", name, *_FOLDERS)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return _compiled(Release(name, folder))


def after(folder: Path) -> Release:
    """Make the release after this one."""
    for part in _FOLDERS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    release = Release("the next one", folder)
    for path, text in next_migrations().items():
        (folder / path).write_text(text)
    return _compiled(release)


def next_migrations() -> dict[Path, str]:
    """Return what the release after this one adds: the path of a migration of each room, and its text."""
    found = {}
    for room, head in this().heads.items():
        revision = f"{int(head) + 1:04}"
        path = Path("services") / room / f"korrigo_{room}" / "migrations" / f"{revision}_next_release.py"
        found[path] = _NEXT.format(revision=revision, head=head, room=room)
    return found


def _compiled(release: Release) -> Release:
    # Ten processes are started with it; each would compile everything anew.
    compileall.compile_dir(release.folder, quiet=2)
    return release


def _newest_tag() -> str | None:
    here = _git("rev-parse", "HEAD").decode().strip()
    tags = _git("tag", "--merged", "HEAD", "--list", "v*", "--sort=-v:refname").decode().split()
    return next((tag for tag in tags if _git("rev-parse", f"{tag}^{{commit}}").decode().strip() != here), None)


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        raise NoHistory(done.stderr.decode(errors="replace").strip())
    return done.stdout
