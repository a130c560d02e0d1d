"""JSON logs with the fields of domain.md 1.18: one line, one object, no names of persons.

The request id and the ids of copy, exam and job come from `kit.context`, so that no caller has to pass them.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from korrigo_kit import context

_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Told otherwise (trace_id, service), or no business of a log: the principal holds a name.
_NOT_LOGGED = ("traceparent", "service", "principal")
# Libraries whose INFO lines say nothing that ours do not.
_CHATTY = (
    "uvicorn.access",
    "httpx",
    "kombu",
    "amqp",
    "celery.app.trace",
    "celery.worker.strategy",
    "alembic",
    "psycopg",
)
# What is stored in the audit trail, a line each (domain.md 1.18).
AUDIT = "audit"
# 10 files of 10 MB (domain.md 1.18).
_FILE_BYTES = 10 * 1024 * 1024
_FILE_COUNT = 10


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; exceptions become one string field."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "service": getattr(record, "service", None) or context.get("service") or self._service,
            "message": record.getMessage(),
            "module": record.module,
            "function": record.funcName,
            "line": record.lineno,
        }
        fields.update({key: value for key, value in context.snapshot().items() if key not in _NOT_LOGGED})
        fields.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD})
        traceparent = context.get("traceparent")
        if isinstance(traceparent, str) and traceparent.count("-") == 3:
            fields["trace_id"] = traceparent.split("-")[1]
        if record.exc_info:
            fields["exc_info"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(fields, default=str).decode()


class SharedFile(logging.Handler):
    """Appends to a file that other processes append to as well and somebody rotates by renaming.

    A line is one write to a descriptor that is open for appending, so the kernel mixes no two lines; what is written
    while the file is renamed ends in the file of the older lines.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._descriptor = -1
        self._file = (0, 0)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, into the file that has the name now."""
        try:
            data = (self.format(record) + "\n").encode(errors="replace")
            self._follow()
            # One write but where the disk is full: then the rest of the line, if there is room again.
            while data:
                data = data[os.write(self._descriptor, data) :]
        except Exception:
            self.handleError(record)

    def _follow(self) -> None:
        try:
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._file:
                return
        except FileNotFoundError:
            pass
        self._shut()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        opened = os.fstat(self._descriptor)
        self._file = (opened.st_dev, opened.st_ino)

    def _shut(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._file = -1, (0, 0)

    def close(self) -> None:
        """Give the descriptor back."""
        with self.lock or contextlib.nullcontext():
            self._shut()
        super().close()


def configure(service: str, level: str, directory: str | None, general_path: str | None = None) -> None:
    """Send every log of this process to standard output as JSON, and to the files that are given.

    These are a rotating one of this process in a folder, and the one of all processes.
    """
    formatter = JsonFormatter(service)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if directory:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                folder / f"{service}.log", maxBytes=_FILE_BYTES, backupCount=_FILE_COUNT, encoding="utf-8"
            )
        )
    if general_path:
        handlers.append(SharedFile(general_path))
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "celery"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def join_general(service: str, level: str, path: str) -> None:
    """Let a command that speaks to a person write what it logs besides into the log of all processes."""
    handler = SharedFile(path)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    # The second is what Python does with warnings as long as there is no handler: tell them to the person.
    root.handlers[:] = [handler, *([logging.lastResort] if logging.lastResort else [])]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def keep_audit(path: str, service: str) -> None:
    """Write the audit log into a rotating file of its own instead; for the one process that writes it."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(
        file, maxBytes=_FILE_BYTES, backupCount=_FILE_COUNT, encoding="utf-8"
    )
    handler.setFormatter(JsonFormatter(service))
    logger = logging.getLogger(AUDIT)
    logger.handlers[:] = [handler]
    logger.propagate = False


class Stopwatch:
    """Seconds since it was made, on the monotonic clock."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def milliseconds(self) -> int:
        return int(self.seconds * 1000)
