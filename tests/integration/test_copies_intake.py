"""Copies come in from ingest, are found complete, and are seen by those who may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from harness.grading_copies import Desk, sha256
from harness.grading_room import GradingRoom
from harness.servers import Postgres
from korrigo_grading.flows import reading, validation
from korrigo_grading.models import copies
from korrigo_kit.errors import Forbidden, Invalid, NotFound, StateConflict
from korrigo_kit.inbox import Outcome
from korrigo_protos.ingest.v1 import events_pb2


@pytest.fixture(scope="module")
def room(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradingRoom]:
    served = GradingRoom(postgres_server, Path(tmp_path_factory.mktemp("grading")))
    yield served
    served.close()


@pytest.fixture(scope="module")
def desk(room: GradingRoom) -> Desk:
    return Desk(room.rt)


def test_a_staged_copy_waits_for_its_pages(desk: Desk) -> None:
    exam_id = desk.exam()
    copy_id = desk.stage(exam_id)
    row = desk.copy(copy_id)
    assert (row["status"], row["assembly"], str(row["exam_id"])) == ("STAGING", 0, exam_id)
    assert desk.actions(copy_id) == [], "IMPORT is ingest's to tell"
    with pytest.raises(StateConflict, match="NO_PAGES"):
        validation.validate(desk.rt, desk.admin, copy_id, override_anomalies=False, reason=None)


def test_an_exam_that_validates_by_itself(desk: Desk) -> None:
    exam_id = desk.exam()
    copy_id = desk.stage(exam_id)
    page_ids = desk.assemble(copy_id, exam_id, pages=3)
    assert desk.copy(copy_id)["status"] == "READY"
    [(action, metadata)] = desk.acts(copy_id)
    assert action == "VALIDATE"
    assert metadata == {"pages": 3, "anomalies_overridden": [], "after": {"ingest": 2}}
    copy, pages = reading.read(desk.rt, desk.admin, copy_id)
    assert [page.page_id for page in pages] == page_ids
    assert copy.leaves[1].id == "q2a"


def test_an_anomaly_waits_for_a_person(desk: Desk) -> None:
    exam_id = desk.exam()
    copy_id = desk.stage(exam_id)
    desk.assemble(copy_id, exam_id, anomalies=["REMAINDER_PAGES"])
    assert desk.copy(copy_id)["status"] == "STAGING"
    with pytest.raises(StateConflict, match="UNRESOLVED_ANOMALIES") as refused:
        validation.validate(desk.rt, desk.admin, copy_id, override_anomalies=False, reason=None)
    assert refused.value.metadata["anomalies"] == ["REMAINDER_PAGES"]
    with pytest.raises(Invalid, match="REASON_REQUIRED"):
        validation.validate(desk.rt, desk.admin, copy_id, override_anomalies=True, reason=" ")
    with pytest.raises(Forbidden):
        validation.validate(desk.rt, desk.person("marker"), copy_id, override_anomalies=True, reason="x")
    clerk = desk.person("scan_operator")
    after = validation.validate(desk.rt, clerk, copy_id, override_anomalies=True, reason="Zoé said so")
    assert after.status == "READY"
    [(told, facts), (_, metadata)] = desk.acts(copy_id)
    assert (told, facts) == (None, {"after": {"ingest": 2}})  # what ingest waits for before it calls a scan done
    assert metadata["anomalies_overridden"] == ["REMAINDER_PAGES"]
    assert len(metadata["reason_commitment"]) == 64 and "Zo" not in str(metadata)
    with pytest.raises(StateConflict, match="INVALID_STATUS"):
        validation.validate(desk.rt, clerk, copy_id, override_anomalies=True, reason="again")


def test_a_higher_assembly_replaces_a_lower_one(desk: Desk) -> None:
    exam_id = desk.exam(auto_validate=False)
    copy_id = desk.stage(exam_id)
    desk.assemble(copy_id, exam_id, assembly=1, pages=2, anomalies=["REMAINDER_PAGES"])
    version = desk.copy(copy_id)["version"]
    newer = desk.assemble(copy_id, exam_id, assembly=3, pages=4)
    desk.assemble(copy_id, exam_id, assembly=2, pages=1)
    row = desk.copy(copy_id)
    assert (row["assembly"], row["version"], row["source_sha256"]) == (3, version + 1, sha256(f"{copy_id} source 3"))
    found = desk.sql("SELECT page_id::text AS id FROM copy_pages WHERE copy_id = %s ORDER BY page_index", copy_id)
    assert [page["id"] for page in found] == newer
    assert desk.sql("SELECT 1 AS n FROM copy_anomalies WHERE copy_id = %s", copy_id) == []


def test_what_is_told_twice_or_early_changes_nothing(desk: Desk) -> None:
    exam_id = desk.exam()
    copy_id = desk.stage(exam_id)
    again = events_pb2.CopyStaged(copy_id=copy_id, exam_id=exam_id, anonymous_id="OTHER", created_by=exam_id)
    assert desk.deliver("ingest", "copy_staged", copy_id, again, 1) is Outcome.DUPLICATE
    assert (
        desk.deliver("ingest", "copy_assembled", copy_id, events_pb2.CopyAssembled(copy_id=copy_id), 9) is Outcome.GAP
    )
    assert desk.copy(copy_id)["anonymous_id"] != "OTHER"


def test_a_withdrawn_copy_leaves_every_list(desk: Desk) -> None:
    exam_id = desk.exam()
    copy_id = desk.stage(exam_id)
    desk.assemble(copy_id, exam_id)
    withdrawn = events_pb2.CopyWithdrawn(copy_id=copy_id, reason="DUPLICATE")
    assert desk.tell("ingest", "copy_withdrawn", copy_id, withdrawn) is Outcome.APPLIED
    assert reading.page(desk.rt, desk.admin, exam_id, None, None, 10) == []
    with pytest.raises(NotFound):
        reading.read(desk.rt, desk.admin, copy_id)
    assert desk.copy(copy_id)["deleted_at"] is not None and desk.actions(copy_id) == ["VALIDATE"]


def test_validate_all_names_what_it_skipped(desk: Desk) -> None:
    exam_id = desk.exam(auto_validate=False)
    good, odd, empty = (desk.stage(exam_id) for _ in range(3))
    desk.assemble(good, exam_id)
    desk.assemble(odd, exam_id, anomalies=["DUPLICATE_FILE"])
    report = validation.validate_all(desk.rt, desk.admin, exam_id)
    assert report.validated == [good]
    assert report.skipped == [(odd, "UNRESOLVED_ANOMALIES"), (empty, "NO_PAGES")]
    with pytest.raises(NotFound, match="EXAM_NOT_FOUND"):
        validation.validate_all(desk.rt, desk.admin, good)


def test_markers_see_their_own(desk: Desk) -> None:
    ada, bob = desk.person("marker"), desk.person("marker")
    exam_id = desk.exam(ada, bob)
    copies_of_exam = [desk.stage(exam_id) for _ in range(3)]
    for copy_id in copies_of_exam:
        desk.assemble(copy_id, exam_id)
    desk.sql("UPDATE copies SET assigned_corrector_id = %s WHERE id = %s", bob.user_id, copies_of_exam[0])
    seen = [copy.id for copy, _ in reading.page(desk.rt, ada, exam_id, None, None, 10)]
    assert seen == copies_of_exam[1:]
    with pytest.raises(NotFound):
        reading.read(desk.rt, ada, copies_of_exam[0])
    with pytest.raises(NotFound):
        reading.page(desk.rt, desk.person("marker"), exam_id, None, None, 10)
    with pytest.raises(Forbidden):
        reading.read(desk.rt, desk.person("student"), copies_of_exam[0])
    for role in ("auditor", "scan_operator", "lead_marker"):
        assert reading.read(desk.rt, desk.person(role), copies_of_exam[0])[0].id == copies_of_exam[0]


def test_a_status_never_changes_in_silence(desk: Desk) -> None:
    copy_id = desk.ready()
    with pytest.raises(psycopg.errors.RestrictViolation, match="without an event"):
        desk.sql("UPDATE copies SET status = 'STAGING' WHERE id = %s", copy_id)
    assert desk.copy(copy_id)["status"] == "READY"


def test_copies_over_http(room: GradingRoom, desk: Desk) -> None:
    ada, ada_id = room.user("ada-reads", "marker")
    exam_id = desk.exam(auto_validate=False)
    desk.sql("UPDATE exams SET corrector_ids = ARRAY[%s]::uuid[] WHERE id = %s", ada_id, exam_id)
    ids = [desk.stage(exam_id) for _ in range(3)]
    for copy_id in ids:
        desk.assemble(copy_id, exam_id)
    admin = room.log_in()
    assert admin.post(f"/api/copies/{ids[0]}/validate").json()["status"] == "READY"
    listed: list[str] = []
    cursor = None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = admin.get(f"/api/exams/{exam_id}/copies", params=params).json()
        listed += [copy["id"] for copy in page["items"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert listed == ids
    assert [c["id"] for c in admin.get(f"/api/exams/{exam_id}/copies?status=READY").json()["items"]] == ids[:1]
    assert admin.get(f"/api/exams/{exam_id}/copies?status=ODD").status_code == 422
    answer = admin.get(f"/api/copies/{ids[0]}")
    copy = answer.json()
    assert answer.headers["ETag"] == f'"{copy["version"]}"'
    assert (copy["grading_retries"], copy["final_score"], copy["revision"]) == (0, None, 1)
    masked = ada.get(f"/api/copies/{ids[0]}").json()
    assert [p["page_id"] for p in masked["pages"]] == [p["page_id"] for p in copy["pages"]]
    assert masked["pages"][0]["image_url"] != copy["pages"][0]["image_url"]
    assert masked["pages"][1]["image_url"] == copy["pages"][1]["image_url"]
    assert copy["pages"][0]["image_url"].startswith(f"/api/pages/{copy['pages'][0]['page_id']}/image?v=")
    report = admin.post(f"/api/exams/{exam_id}/validate-all").json()
    assert report == {"validated": ids[1:], "skipped": []}
    assert ada.post(f"/api/copies/{ids[0]}/validate", json={}).status_code == 403
    assert admin.get("/api/copies/nope").status_code == 422
    with room.rt.db.transaction() as tx:
        assert copies.read(tx, ids[0]) is not None
