"""Incidents as files: JSON, which is the truth, and a Markdown report made from it, in $KORRIGO_HOME/incidents.

A report that somebody has edited is his: it is not written again, only the JSON is.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

from korrigo.home import Home, replace_file
from korrigo_kit.errors import Invalid, NotFound
from korrigo_kit.incidents import report
from korrigo_kit.incidents.record import Incident

_ID = re.compile(r"\d{4}-\d{2}-\d{2}-\d{2}-\d{2}-[a-z0-9-]{1,80}")


class Book:
    """The incidents of a home."""

    def __init__(self, home: Home) -> None:
        self.folder = home.root / "incidents"

    def name(self, started_at: datetime, title: str) -> str:
        """Make an id that no incident has: the minute it began and what it is about."""
        ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
        slug = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", ascii_title)
        slug = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")[:60] or "incident"
        stem = f"{started_at.astimezone(UTC):%Y-%m-%d-%H-%M}-{slug}"
        names = {path.stem for path in self.folder.glob("*.json")}
        return next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000))) if name not in names)

    def all(self) -> list[Incident]:
        """List every incident, newest first."""
        found = [_read(path) for path in self.folder.glob("*.json") if _ID.fullmatch(path.stem)]
        return sorted(found, key=lambda incident: incident.started_at, reverse=True)

    def find(self, incident_id: str) -> Incident:
        """Read an incident by its id, or the newest that is open for `latest`; raises NotFound (INCIDENT_NOT_FOUND)."""
        known = self.all()
        if incident_id == "latest":
            chosen = next((found for found in known if found.is_open), known[0] if known else None)
        else:
            chosen = next((found for found in known if found.id == incident_id), None)
        if chosen is None:
            raise NotFound("INCIDENT_NOT_FOUND", f"there is no such incident in {self.folder}: {incident_id}")
        return chosen

    def write(self, incident: Incident, now: datetime) -> bool:
        """Write both files; False when the report was edited by hand and is left as it is."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.report_file(incident)
        is_ours = not path.exists() or _sha256(path.read_text()) == incident.report_sha256
        text = report.markdown(incident, now)
        if is_ours:
            incident.report_sha256 = _sha256(text)
        document = json.dumps(incident.fields(now), ensure_ascii=False, indent=1)
        replace_file(self.folder / f"{incident.id}.json", document + "\n")
        if is_ours:
            replace_file(path, text)
        return is_ours

    def report_file(self, incident: Incident) -> Path:
        """Return the path of the report."""
        return self.folder / f"{incident.id}.md"


def _read(path: Path) -> Incident:
    try:
        return Incident.of(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise Invalid("INCIDENT_UNREADABLE", f"{path} is no incident: {error}") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
