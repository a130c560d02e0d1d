"""One incident: a JSON file that is the truth and a Markdown report made from it, in $KORRIGO_HOME/incidents.

A report that somebody has edited is his: it is not written again, only the JSON is.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from korrigo.home import Home, replace_file
from korrigo.incidents import levels, report
from korrigo_kit.errors import Invalid, NotFound

FORMAT = 1
_ID = re.compile(r"\d{4}-\d{2}-\d{2}-\d{2}-\d{2}-[a-z0-9-]{1,80}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a timeline; `kind` is alert, resolved, failure, act, command or note."""

    at: str
    kind: str
    text: str


@dataclass
class Incident:
    """An incident; times are ISO in UTC, None = not yet."""

    id: str
    title: str
    priority: str
    severity: str
    created_at: str
    started_at: str
    ended_at: str | None = None
    closed_at: str | None = None
    group_id: str | None = None
    alertname: str | None = None
    scenario: str | None = None
    runbook_url: str | None = None
    impact: str = ""
    cause: str = ""
    actions: list[str] = field(default_factory=list)
    lessons: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    timeline: list[Entry] = field(default_factory=list)
    # What could not be asked when it was last looked at.
    unasked: list[str] = field(default_factory=list)
    report_sha256: str = ""

    @property
    def is_open(self) -> bool:
        """Tell whether nobody has closed it."""
        return self.closed_at is None

    def lasted_seconds(self, now: datetime) -> float:
        """Tell how long it has lasted, or lasted."""
        ended = self.ended_at or self.closed_at
        end = datetime.fromisoformat(ended) if ended else now
        return max(0.0, (end - datetime.fromisoformat(self.started_at)).total_seconds())

    def level(self, now: datetime) -> int:
        """Return who has to know by now, 1 to 4."""
        return levels.level(self.priority, self.lasted_seconds(now))

    def fields(self, now: datetime) -> dict[str, Any]:
        """Write it as one JSON object, with what follows from the time."""
        return {
            **asdict(self),
            "format": FORMAT,
            "status": "open" if self.is_open else "closed",
            "level": self.level(now),
            "lasted_seconds": round(self.lasted_seconds(now)),
        }


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
        found = json.loads(path.read_text())
        known = {name: found[name] for name in Incident.__dataclass_fields__ if name in found}
        known["timeline"] = [Entry(**entry) for entry in known.get("timeline", [])]
        return Incident(**known)
    except (ValueError, TypeError, KeyError) as error:
        raise Invalid("INCIDENT_UNREADABLE", f"{path} is no incident: {error}") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
