"""Copies for tests of grading: exams and accounts by SQL, and the events of ingest and render fed by hand."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from korrigo_grading.consumer import subscriptions
from korrigo_kit import inbox
from korrigo_kit.auth import Principal
from korrigo_kit.ids import new_id, random_code
from korrigo_kit.inbox import Outcome
from korrigo_kit.room import Runtime
from korrigo_protos.common.v1 import event_pb2
from korrigo_protos.ingest.v1 import events_pb2 as ingest_pb2
from korrigo_protos.render.v1 import events_pb2 as render_pb2

SCHEME = [
    {"id": "q1", "label": "Question 1", "points": 8},
    {
        "id": "q2",
        "label": "Question 2",
        "points": 12,
        "children": [{"id": "q2a", "label": "2a", "points": 5}, {"id": "q2b", "label": "2b", "points": 7}],
    },
]
LEAVES = {"q1": 800, "q2a": 500, "q2b": 700}


def sha256(text: str) -> str:
    """Name some bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


class Desk:
    """A grading room's database seen by its neighbours: ingest and render speak, people are principals."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt
        self._subscriptions = {one.source: one for one in subscriptions(rt)}
        self._numbers: dict[tuple[str, str], int] = {}
        self.admin = self.person("admin")

    # ------------------------------------------------------------------------------------------------ people
    def person(self, *roles: str) -> Principal:
        """Make an account that exists in the database."""
        user_id = new_id()
        name = f"{'-'.join(roles)}-{user_id[-6:]}"
        with self.rt.db.transaction() as tx:
            tx.run(
                "INSERT INTO users (id, username, account_key, roles) VALUES (%s, %s, %s, %s)",
                (user_id, name, name, list(roles)),
            )
        return Principal(user_id, name, roles, session_id=new_id())

    def exam(self, *correctors: Principal, auto_validate: bool = True) -> str:
        """Make an exam of 20 points in three questions."""
        exam_id = new_id()
        with self.rt.db.transaction() as tx:
            tx.run(
                "INSERT INTO exams (id, name, date, split_mode, pages_per_booklet, split_horizontal, grading_structure,"
                " max_score, auto_validate, corrector_ids, created_by)"
                " VALUES (%s, 'Maths', '2026-01-12', 'A4_single', 0, true, %s, 20, %s, %s::uuid[], %s)",
                (exam_id, json.dumps(SCHEME), auto_validate, [c.user_id for c in correctors], self.admin.user_id),
            )
        return exam_id

    # ------------------------------------------------------------------------------------------------ neighbours
    def tell(self, source: str, type: str, copy_id: str, payload: Message) -> Outcome:
        """Deliver the next event of a room about a copy."""
        number = self._numbers.get((source, copy_id), 0) + 1
        self._numbers[source, copy_id] = number
        return self.deliver(source, type, copy_id, payload, number)

    def deliver(self, source: str, type: str, copy_id: str, payload: Message, number: int) -> Outcome:
        """Deliver an event with a number of one's own choice."""
        event = event_pb2.Event(
            id=new_id(),
            type=type,
            stream=event_pb2.Stream(subject_type="copy", subject_id=copy_id),
            source=source,
            source_seq=number,
            payload=payload.SerializeToString(),
            request_id="request-of-the-test",
        )
        return inbox.apply(self.rt.db, self._subscriptions[source], event)

    def stage(self, exam_id: str) -> str:
        """Let ingest stage a copy."""
        copy_id = new_id()
        staged = ingest_pb2.CopyStaged(
            copy_id=copy_id,
            exam_id=exam_id,
            scan_id=new_id(),
            anonymous_id=random_code(10),
            created_by=self.admin.user_id,
        )
        assert self.tell("ingest", "copy_staged", copy_id, staged) is Outcome.APPLIED
        return copy_id

    def assemble(
        self, copy_id: str, exam_id: str, *, pages: int = 2, assembly: int = 1, anomalies: Sequence[str] = ()
    ) -> list[str]:
        """Let ingest tell the pages of a copy; returns their ids."""
        page_ids = [new_id() for _ in range(pages)]
        scan_id = new_id()
        told = ingest_pb2.CopyAssembled(
            copy_id=copy_id,
            exam_id=exam_id,
            assembly=assembly,
            pages=[
                ingest_pb2.Page(
                    page_id=page_id,
                    index=index,
                    width=595.0,
                    height=842.0,
                    is_masked=index == 0,
                    picture_sha256=sha256(f"{page_id} whole"),
                    masked_picture_sha256=sha256(f"{page_id} masked" if index == 0 else f"{page_id} whole"),
                    scan_id=scan_id,
                )
                for index, page_id in enumerate(page_ids)
            ],
            anomalies=[ingest_pb2.Anomaly(code=code, scan_page=-1) for code in anomalies],
            source_sha256=sha256(f"{copy_id} source {assembly}"),
            source_size=1234,
            booklets=[
                ingest_pb2.Booklet(
                    booklet_id=new_id(), position=0, start_page=1, end_page=max(pages, 1), page_ids=page_ids
                )
            ],
        )
        assert self.tell("ingest", "copy_assembled", copy_id, told) is Outcome.APPLIED
        return page_ids

    def ready(self, *correctors: Principal, pages: int = 2) -> str:
        """Make a READY copy in an exam of its own."""
        exam_id = self.exam(*correctors)
        copy_id = self.stage(exam_id)
        self.assemble(copy_id, exam_id, pages=pages)
        return copy_id

    def rendered(self, copy_id: str, pdf: bytes, **changes: Any) -> Outcome:
        """Let render tell the final PDF of the newest request."""
        asked = self.newest(copy_id)
        blob = self.rt.blobs.put_bytes(pdf)
        values: dict[str, Any] = {
            "copy_id": copy_id,
            "revision": asked["revision"],
            "request": asked["request"],
            "final_sha256": blob.sha256,
            "final_size": blob.size,
            "pages": 3,
            "source_pages": 2,
            "manifest_sha256": asked["manifest_sha256"],
            "attempt": 1,
            "duration_ms": 1200,
        }
        return self.tell("render", "rendered", copy_id, render_pb2.Rendered(**{**values, **changes}))

    def render_failed(self, copy_id: str, attempt: int, *, is_final: bool, **changes: Any) -> Outcome:
        """Let render tell that an attempt at the newest request failed."""
        asked = self.newest(copy_id)
        values: dict[str, Any] = {
            "copy_id": copy_id,
            "revision": asked["revision"],
            "request": asked["request"],
            "attempt": attempt,
            "reason": "TIMEOUT",
            "is_final": is_final,
            "duration_ms": 900,
        }
        return self.tell("render", "render_failed", copy_id, render_pb2.RenderFailed(**{**values, **changes}))

    # ------------------------------------------------------------------------------------------------ looking
    def newest(self, copy_id: str) -> dict[str, Any]:
        """Read the newest request for a final PDF."""
        with self.rt.db.transaction() as tx:
            return tx.row(
                "SELECT * FROM finalisations WHERE copy_id = %s ORDER BY revision DESC, request DESC LIMIT 1",
                (copy_id,),
            )

    def copy(self, copy_id: str) -> dict[str, Any]:
        """Read a copy's row."""
        with self.rt.db.transaction() as tx:
            return tx.row("SELECT * FROM copies WHERE id = %s", (copy_id,))

    def sql(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Run a statement."""
        with self.rt.db.transaction() as tx:
            return tx.all(statement, values)

    def acts(self, copy_id: str) -> list[tuple[str | None, dict[str, Any]]]:
        """List (action, metadata) of every event of a copy, in order."""
        rows = self.sql(
            "SELECT action, convert_from(leaf, 'UTF8')::jsonb -> 'metadata' AS metadata FROM outbox"
            " WHERE subject_type = 'copy' AND subject_id = %s ORDER BY source_seq",
            copy_id,
        )
        return [(row["action"], row["metadata"]) for row in rows]

    def actions(self, copy_id: str) -> list[str]:
        """List the audited actions of a copy, in order."""
        return [action for action, _ in self.acts(copy_id) if action is not None]

    def age_lock(self, copy_id: str, seconds: float) -> None:
        """Move a lock into the past, as if so much time had gone by."""
        self.sql(
            "UPDATE copy_locks SET acquired_at = acquired_at - make_interval(secs => %s),"
            " heartbeat_at = heartbeat_at - make_interval(secs => %s),"
            " expires_at = expires_at - make_interval(secs => %s) WHERE copy_id = %s",
            *[seconds] * 3,
            copy_id,
        )


def annotation(**changes: Any) -> dict[str, Any]:
    """Make the body of an annotation."""
    body = {
        "id": str(uuid.uuid4()), "page_index": 0, "x": 0.1, "y": 0.4, "w": 0.2, "h": 0.1,
        "type": "COMMENT", "content": "Clear",
    }  # fmt: skip
    return {key: value for key, value in {**body, **changes}.items() if value is not ...}
