"""What the clients were told, kept outside the system; `harness.checker` compares it with the system afterwards.

Only acknowledged facts count (a 2xx answer). Unacknowledged tries are remembered too, because their effect may be
there and must not be called a duplicate.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass
class UploadEntry:
    """One acknowledged upload, and what should come of it."""

    scan_id: str
    exam_id: str
    path: Path
    sha256: str
    source_pages: int
    copies: int
    half_pages: int
    is_one_copy: bool


@dataclass
class AnnotationEntry:
    """One annotation: the acknowledged document, or the wish while no answer came."""

    annotation_id: str
    copy_id: str
    content: str
    version: int = 0
    is_acked: bool = False
    is_deleted: bool = False
    is_delete_sent: bool = False


@dataclass
class CopyEntry:
    """One copy that a client worked on."""

    copy_id: str
    annotations: dict[str, AnnotationEntry] = field(default_factory=dict)
    scores: dict[str, float] | None = None
    is_finalize_acked: bool = False
    fences: list[int] = field(default_factory=list)
    graded: Json | None = None


class Ledger:
    """Thread-safe memory of the clients; `touched_at` is the last time anything moved (monotonic seconds)."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.uploads: list[UploadEntry] = []
        self.copies: dict[str, CopyEntry] = {}
        self.touched_at = time.monotonic()
        self.longest_silence = 0.0

    def touch(self) -> None:
        """Note that the system made visible progress."""
        with self._lock:
            now = time.monotonic()
            self.longest_silence = max(self.longest_silence, now - self.touched_at)
            self.touched_at = now

    def silence(self) -> float:
        """Seconds since the last visible progress."""
        with self._lock:
            return time.monotonic() - self.touched_at

    def uploaded(self, answer: Json, exam_id: str, path: Path, *, pages: int, copies: int, is_a3: bool) -> None:
        """Record an acknowledged upload."""
        entry = UploadEntry(
            scan_id=answer["scan_id"],
            exam_id=exam_id,
            path=path,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            source_pages=pages,
            copies=copies,
            half_pages=pages * 2 if is_a3 else pages,
            is_one_copy=copies == 1 and not is_a3,
        )
        with self._lock:
            self.uploads.append(entry)
        self.touch()

    def copy(self, copy_id: str) -> CopyEntry:
        """Return the entry of a copy."""
        with self._lock:
            return self.copies.setdefault(copy_id, CopyEntry(copy_id))

    def locked(self, copy_id: str, fence: int) -> None:
        """Record a granted lock."""
        self.copy(copy_id).fences.append(fence)
        self.touch()

    def annotating(self, copy_id: str, annotation_id: str, content: str) -> AnnotationEntry:
        """Record the wish to create an annotation, before the first try."""
        entry = AnnotationEntry(annotation_id, copy_id, content)
        self.copy(copy_id).annotations[annotation_id] = entry
        return entry

    def annotated(self, entry: AnnotationEntry, answer: Json) -> None:
        """Record an acknowledged create or change."""
        entry.is_acked = True
        entry.content = answer["content"]
        entry.version = answer["version"]
        self.touch()

    def deleted(self, entry: AnnotationEntry) -> None:
        """Record an acknowledged deletion."""
        entry.is_deleted = True
        self.touch()

    def scored(self, copy_id: str, scores: dict[str, float]) -> None:
        """Record acknowledged scores."""
        self.copy(copy_id).scores = dict(scores)
        self.touch()

    def finalized(self, copy_id: str) -> None:
        """Record an acknowledged finalise."""
        self.copy(copy_id).is_finalize_acked = True
        self.touch()

    def graded(self, copy: Json) -> None:
        """Record that a copy was seen GRADED."""
        self.copy(copy["id"]).graded = copy
        self.touch()
