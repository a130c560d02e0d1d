"""The evidence of a moment as one file: what a person far away needs to understand, and nothing secret and no name.

    snapshot-TIME/
        manifest.json   when, of what, which parts are missing and why, SHA-256 of every part
        config.json     every setting and its origin, secrets masked
        logs/*.jsonl    recent lines of every process, known fields only
        metrics.txt     what /metrics answers now
        doctor.json  scenarios.json  stuck.json  queues.json    what those commands say
        alerts.json  audit.jsonl  incidents.json  commands.json
        versions.json  machine.json

Every part may fail by itself, for example while the database is away; the others are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from korrigo import installation, processes
from korrigo.general_log import is_copy
from korrigo.home import Home, is_in_use
from korrigo.incidents import journal, redaction
from korrigo.incidents.book import Book
from korrigo_kit.clock import rfc3339
from korrigo_kit.errors import KorrigoError, Unavailable
from korrigo_kit.settings import Settings

# Of one process's log; the newest lines count.
_LOG_BYTES = 4 << 20
_MOST_RECORDS = 50_000
_COMMAND_SECONDS = 90
_PATIENCE_SECONDS = 10
# Fields that log lines have (korrigo_kit.telemetry.logs); anything else stays here.
_FIELDS = (
    "timestamp", "level", "logger", "service", "message", "module", "function", "line", "path", "method",
    "status_code", "request_id", "user_id", "copy_id", "exam_id", "scan_id", "job_id", "trace_id", "duration_ms",
    "reason", "exc_info",
)  # fmt: skip
_COMMANDS = {
    "doctor.json": ("doctor", "--json"),
    "scenarios.json": ("doctor", "scenario", "all", "--json"),
    "stuck.json": ("stuck", "--json"),
    "queues.json": ("queue", "status", "--json"),
}
Say = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A bundle that was written; `missing` parts by the reason."""

    path: Path
    sha256: str
    size: int
    parts: tuple[str, ...]
    missing: dict[str, str]
    knows_names: bool


def _silent(what: str, count: int) -> None:
    return None


def take(home: Home, settings: Settings, *, to: Path | None = None, hours: float = 24, say: Say = _silent) -> Snapshot:
    """Write the bundle (0600); raises Unavailable (SNAPSHOT_NOT_WRITTEN) when it cannot be written."""
    at = datetime.now(UTC)
    path = to or home.root / "incidents" / "snapshots" / f"snapshot-{at:%Y-%m-%d-%H-%M-%S}.tar.gz"
    redact = redaction.of(settings, home)
    collector = _Collector(home, settings, at - timedelta(hours=hours))
    texts: dict[str, str] = {}
    missing: dict[str, str] = {}
    for number, (name, make) in enumerate(collector.parts().items()):
        say("collected", number)
        try:
            texts |= {part: redact(text) for part, text in make(name)}
        except (KorrigoError, OSError, ValueError, subprocess.SubprocessError) as error:
            missing[name] = redact(getattr(error, "reason", "") or type(error).__name__)
    manifest = {
        "taken_at": rfc3339(at),
        "since": rfc3339(at - timedelta(hours=hours)),
        "names_were_known": redact.knows_names,
        "missing": missing,
        "sha256": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(texts.items())},
    }
    texts["manifest.json"] = json.dumps(manifest, indent=1)
    try:
        data = _pack(path, path.name.removesuffix(".tar.gz"), texts, at)
    except OSError as error:
        raise Unavailable("SNAPSHOT_NOT_WRITTEN", f"cannot write {path}: {error.strerror}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    return Snapshot(path, sha256, len(data), tuple(sorted(texts)), missing, redact.knows_names)


def _pack(path: Path, root: str, texts: dict[str, str], at: datetime) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in sorted(texts.items()):
            data = text.encode()
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size, member.mtime, member.mode = len(data), int(at.timestamp()), 0o600
            archive.addfile(member, io.BytesIO(data))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return buffer.getvalue()


Part = Iterator[tuple[str, str]]


class _Collector:
    """Makes the parts; each yields (name in the bundle, text)."""

    def __init__(self, home: Home, settings: Settings, since: datetime) -> None:
        self._home = home
        self._settings = settings
        self._since = since

    def parts(self) -> dict[str, Callable[[str], Part]]:
        """Map the parts to what makes them, the quickest first."""
        return {
            "config.json": self._config,
            "versions.json": self._versions,
            "machine.json": self._machine,
            "commands.json": self._given,
            "incidents.json": self._incidents,
            "logs": self._logs,
            "metrics.txt": self._metrics,
            "alerts.json": self._alerts,
            "audit.jsonl": self._audit,
            **dict.fromkeys(_COMMANDS, self._said),
        }

    def _config(self, name: str) -> Part:
        rows = {variable: {"value": value, "origin": origin} for variable, value, origin in self._settings.show()}
        yield name, _json(rows)

    def _versions(self, name: str) -> Part:
        packages = {found.name: found.version for found in distributions()}
        yield name, _json(
            {
                "korrigo": packages.get("korrigo"), "python": platform.python_version(), "system": platform.platform(),
                "packages": dict(sorted(packages.items())), "schemas": self._schemas(),
            }
        )  # fmt: skip

    def _schemas(self) -> dict[str, str | None]:
        from korrigo_kit.migrate import connect, current

        try:
            with connect(self._settings.database) as connection:
                found = {room: current(connection, room) for room in installation.ROOMS}
                return {**found, "postgresql": connection.info.parameter_status("server_version")}
        except KorrigoError as error:
            return {"unknown": error.reason}

    def _machine(self, name: str) -> Part:
        folder = next(path for path in (self._home.root, *self._home.root.parents) if path.exists())
        usage = shutil.disk_usage(folder)
        memory = Path("/proc/meminfo")
        listed = memory.read_text().splitlines()[:5] if memory.exists() else []
        state = self._home.state() or {}
        sessions = set(state.get("children", {}).values())
        running = [
            {"pid": one.pid, "parent": one.parent, "command": one.command, "state": one.state}
            for one in processes.every()
            if one.session in sessions or one.pid == state.get("pid")
        ]
        yield name, _json(
            {
                "disk": {"size": usage.total, "free": usage.free}, "load": os.getloadavg(), "memory": listed,
                "processors": os.cpu_count(), "is_up": is_in_use(self._home), "supervisor": state, "processes": running,
            }
        )  # fmt: skip

    def _given(self, name: str) -> Part:
        found = journal.between(self._home, self._since, datetime.now(UTC))
        yield name, _json([{"at": rfc3339(one.at), "command": one.words, "exit_code": one.code} for one in found])

    def _incidents(self, name: str) -> Part:
        found = [one for one in Book(self._home).all() if datetime.fromisoformat(one.started_at) >= self._since]
        yield name, _json([one.fields(datetime.now(UTC)) for one in found])

    def _logs(self, _: str) -> Part:
        for path in sorted(path for path in self._home.logs.glob("*.log") if not is_copy(path)):
            lines = list(_recent(path, self._since))
            if lines:
                yield f"logs/{path.stem}.jsonl", "\n".join(lines) + "\n"

    def _metrics(self, name: str) -> Part:
        url = (self._home.state() or {}).get("url") if is_in_use(self._home) else self._settings.http.public_url
        if not str(url or "").startswith(("http://", "https://")):
            raise Unavailable("NOT_RUNNING", "there is nobody to ask")
        with urllib.request.urlopen(f"{url}/metrics", timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310 - checked
            yield name, answer.read().decode(errors="replace")

    def _alerts(self, name: str) -> Part:
        from korrigo.runtimes import runtime
        from korrigo_grading.flows import alerting

        with runtime("grading", self._settings) as grading:
            found = alerting.since(grading, self._since)
        yield name, _json(
            [
                {
                    "id": group.id, "labels": group.labels, "started_at": group.started_at, "ended_at": group.ended_at,
                    "alerts": [
                        {"labels": one.labels, "started_at": one.started_at, "ended_at": one.ended_at}
                        for one in group.alerts
                    ],
                }
                for group in found
            ]
        )  # fmt: skip

    def _audit(self, name: str) -> Part:
        from korrigo.commands.export_audit_logs import records
        from korrigo.runtimes import runtime

        with runtime("audit", self._settings) as audit:
            lines = []
            for record in records(audit.db, self._since, None):
                lines.append(json.dumps(record, ensure_ascii=False, default=str))
                if len(lines) == _MOST_RECORDS:
                    break
        yield name, "\n".join(lines) + "\n"

    def _said(self, name: str) -> Part:
        done = subprocess.run(
            [sys.executable, "-m", "korrigo", *_COMMANDS[name]],
            capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL,
            env=os.environ | {journal.UNNOTED_VARIABLE: "1"},
        )  # fmt: skip
        try:
            answer: Any = json.loads(done.stdout)
        except ValueError:
            answer = {"stdout": done.stdout[-4000:], "stderr": done.stderr[-4000:]}
        yield name, _json({"exit_code": done.returncode, "answer": answer})


def _recent(path: Path, since: datetime) -> Iterator[str]:
    """Yield the newest lines of a log that are one of ours, with known fields only."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - _LOG_BYTES))
        if size > _LOG_BYTES:
            file.readline()
        earliest = since.timestamp()
        for raw in file.read(_LOG_BYTES).decode(errors="replace").splitlines():
            try:
                line = json.loads(raw)
                is_recent = datetime.fromisoformat(line["timestamp"]).timestamp() >= earliest
            except (ValueError, KeyError, TypeError):
                continue
            if is_recent:
                yield json.dumps({key: line[key] for key in _FIELDS if key in line}, ensure_ascii=False, default=str)


def _json(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1, default=_plain)


def _plain(value: object) -> object:
    return rfc3339(value) if isinstance(value, datetime) else str(value)
