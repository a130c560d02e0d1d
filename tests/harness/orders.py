"""What tests of healing share: an order over the wire, an import in a given state, what the room told of it."""

from __future__ import annotations

from harness.whole_rooms import WholeRooms
from korrigo_kit import operations
from korrigo_kit.ids import new_id
from korrigo_kit.interventions import Asked
from korrigo_kit.rpc import Channels
from korrigo_protos.common.v1.operations_pb2 import InterveneResponse


def ask(channels: Channels, action: str, kind: str = "all", id: str = "", **more: str | bool) -> InterveneResponse:
    """Order an intervention as the command line does; `more` are fields of `Asked`."""
    uid = str(more.pop("uid", new_id()))
    reason = str(more.pop("reason", "because of a test"))
    asked = Asked(uid, action, kind, id, reason, bool(more.pop("is_dry_run", False)), **more)  # type: ignore[arg-type]
    return operations.intervene(channels, asked, seconds=30)


def told(rooms: WholeRooms, room: str, subject_id: str) -> list[dict[str, object]]:
    """List the events of a subject that a room wrote, as their leaves, in order."""
    with rooms[room].db.transaction() as tx:
        rows = tx.all(
            "SELECT convert_from(leaf, 'UTF8')::jsonb AS leaf FROM outbox WHERE subject_id = %s ORDER BY source_seq",
            (subject_id,),
        )
    return [row["leaf"] for row in rows]


def make_scan(rooms: WholeRooms, state: str, reason: str | None, job_state: str) -> str:
    """Make a scan and its job in these states and return its id."""
    scan, job = new_id(), new_id()
    rooms.sql(
        "INSERT INTO ingest.jobs (id, kind, subject_id, payload, state, attempts, error_reason, request_id,"
        " traceparent, finished_at) VALUES (%s, 'import', %s, '{}', %s, 3, %s, 'r', '', clock_timestamp())",
        job, scan, job_state, reason,
    )  # fmt: skip
    rooms.sql(
        "INSERT INTO ingest.scans (id, exam_id, state, filename, sha256, size, split_mode, pages_per_booklet,"
        " split_horizontal, uploaded_by, job_id, error_reason) VALUES (%s, %s, %s, 'x.pdf', %s, 9, 'A4_single', 0,"
        " true, %s, %s, %s)",
        scan, new_id(), state, "ab" * 32, new_id(), job, reason,
    )  # fmt: skip
    return scan
