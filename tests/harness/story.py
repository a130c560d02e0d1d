"""The marker's part of the main story with a ledger: lock, annotate, change, delete, score, finalise.

Shared by the e2e story and the chaos test; every wish and every acknowledgement goes into the ledger.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from harness.client import Client, Lock, Refused, uuid7
from harness.ledger import AnnotationEntry, Ledger

Json = dict[str, Any]
RELOCKED = frozenset({"LOCK_EXPIRED", "LOCK_MISSING", "INVALID_LOCK_TOKEN"})


class Marker:
    """One marker at work on one copy after another."""

    def __init__(self, client: Client, ledger: Ledger, choose: random.Random) -> None:
        self.client, self.ledger, self.choose = client, ledger, choose

    def mark(self, copy: Json, questions: dict[str, float], *, annotations: int = 3) -> None:
        """Do the whole work on one READY copy; a lost lease is taken anew and the refused write replayed."""
        copy_id = copy["id"]
        lock = self._lock(copy_id)
        made: list[tuple[AnnotationEntry, Json]] = []
        for _ in range(annotations):
            wish = self._wish(copy_id, len(copy["pages"]))
            lock, answer = self._write(lock, lambda held, wish=wish: self._annotate(held, wish))  # type: ignore[misc]
            made.append(answer)
        if len(made) > 1:
            lock = self._change(lock, *made[0])
        if len(made) > 2:
            lock = self._delete(lock, *made[-1])
        scores = {q: self.choose.randint(0, int(points * 4)) / 4 for q, points in questions.items()}
        lock, _ = self._write(lock, lambda held: self.client.put_scores(held, scores, "Well done"))
        self.ledger.scored(copy_id, scores)
        self._write(lock, self.client.finalize)
        self.ledger.finalized(copy_id)

    def _lock(self, copy_id: str) -> Lock:
        lock = self.client.lock(copy_id)
        self.ledger.locked(copy_id, lock.fence)
        return lock

    def _write(self, lock: Lock, call: Callable[[Lock], Any]) -> tuple[Lock, Any]:
        try:
            return lock, call(lock)
        except Refused as refused:
            if refused.reason not in RELOCKED:
                raise
            lock = self._lock(lock.copy_id)
            return lock, call(lock)

    def _wish(self, copy_id: str, pages: int) -> tuple[AnnotationEntry, Json]:
        # one word without hyphens, short enough to stay on one line of the margin
        content = f"mk{self.choose.getrandbits(32):08x}"
        annotation_id = uuid7()
        fields = {
            "id": annotation_id,
            "page_index": self.choose.randrange(pages),
            "x": round(self.choose.uniform(0.05, 0.6), 4),
            "y": round(self.choose.uniform(0.3, 0.9), 4),
            "w": 0.25,
            "h": 0.04,
            "type": self.choose.choice(["COMMENT", "ERROR", "BONUS"]),
            "content": content,
        }
        return self.ledger.annotating(copy_id, annotation_id, content), fields

    def _annotate(self, lock: Lock, wish: tuple[AnnotationEntry, Json]) -> tuple[AnnotationEntry, Json]:
        entry, fields = wish
        answer = self.client.annotate(lock, **fields)
        self.ledger.annotated(entry, answer)
        return entry, answer

    def _change(self, lock: Lock, entry: AnnotationEntry, answer: Json) -> Lock:
        content = f"up{self.choose.getrandbits(32):08x}"
        lock, changed = self._write(lock, lambda held: self.client.patch_annotation(held, answer, content=content))
        self.ledger.annotated(entry, changed)
        return lock

    def _delete(self, lock: Lock, entry: AnnotationEntry, answer: Json) -> Lock:
        entry.is_delete_sent = True
        lock, _ = self._write(lock, lambda held: self.client.delete_annotation(held, answer))
        self.ledger.deleted(entry)
        return lock
