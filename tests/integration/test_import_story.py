"""The import story on real parts, without a broker: accept, one attempt at the job, what the tables and events say."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness import pdfs
from harness.servers import Postgres
from korrigo_ingest.flows import accepting, reading
from korrigo_ingest.peers import Exam
from korrigo_ingest.room import ROOM
from korrigo_ingest.settings import SECTIONS
from korrigo_kit import outbox
from korrigo_kit.attempt import run_job
from korrigo_kit.auth import Principal
from korrigo_kit.errors import NotFound
from korrigo_kit.ids import new_id
from korrigo_kit.migrate import Plan, migrate
from korrigo_kit.rest import Idempotency, Upload
from korrigo_kit.room import Process, Runtime
from korrigo_kit.settings import load
from korrigo_kit.telemetry.logs import JsonFormatter
from korrigo_protos.ingest.v1.events_pb2 import CopyAssembled

CORPORA = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"
ADMIN = new_id()


class Ingest:
    """The ingest room with a database and a store of its own."""

    def __init__(self, url: str, folder: Path, more: Mapping[str, str] | None = None) -> None:
        environ = {
            "KORRIGO_DATABASE__URL": url,
            "KORRIGO_BLOBS__URL": f"file://{folder}/blobs",
            "KORRIGO_UPLOAD__SPOOL": f"{folder}/spool",
            "KORRIGO_RPC__SECRET": "only for this test, 32 characters",
            **(more or {}),
        }
        self.folder = folder
        settings = load(SECTIONS, environ)
        migrate(settings.database, [Plan("ingest", ROOM.migrations)])
        self.process = Process.build([ROOM], settings)
        self.rt: Runtime = self.process.runtimes["ingest"]

    def upload(self, data: bytes, exam: Exam) -> tuple[str, str]:
        path = self.folder / "upload.pdf"
        path.write_bytes(data)
        upload = Upload(path, "DUPONT_Jean.pdf", len(data), hashlib.sha256(data).hexdigest())
        answer = accepting.accept(self.rt, upload, exam, ADMIN, Idempotency(None, ADMIN, "upload"))
        return answer["scan_id"], answer["job_id"]

    def work(self, job_id: str) -> None:
        run_job(self.rt, ROOM.tasks(self.rt), job_id)
        with self.rt.db.transaction() as tx:
            # What grading would tell of the copies that it has taken in.
            tx.run(
                "INSERT INTO copy_access (copy_id, exam_id, status) SELECT c.copy_id, s.exam_id, 'STAGING'"
                " FROM scan_copies c JOIN scans s ON s.id = c.scan_id ON CONFLICT DO NOTHING"
            )

    def imported(self, data: bytes, exam: Exam) -> dict[str, Any]:
        scan_id, job_id = self.upload(data, exam)
        self.work(job_id)
        return reading.scan(self.rt.db, scan_id)

    def events(self, subject_id: str) -> list[Any]:
        return outbox.fetch(self.rt.db, subject=("copy", subject_id), from_seq=1, types=(), limit=50)


def scan_of(folder: Path, pages: int) -> bytes:
    """Make an A4 scan; every call gives other bytes."""
    path = folder / f"{new_id()}.pdf"
    number = int(path.stem.replace("-", "")[-5:], 16) % 256
    return pdfs.a4_booklets(path, document=number, booklets=1, pages=pages).read_bytes()


def exam(mode: str = "A4_single", pages_per_booklet: int = 0) -> Exam:
    return Exam(new_id(), mode, pages_per_booklet, True)


@pytest.fixture(scope="module")
def ingest(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """One ingest room for the module: every test has an exam of its own."""
    room = Ingest(postgres_server.url(postgres_server.create_database("ingest")), tmp_path_factory.mktemp("ingest"))
    yield room
    room.process.close()


def test_a_scan_becomes_one_copy_with_all_its_pages(ingest: Ingest) -> None:
    """DONE, conserved, told by two events, and the uploaded name nowhere in them."""
    scan = ingest.imported(scan_of(ingest.folder, 3), exam())
    assert scan["state"] == "DONE", scan
    assert scan["conservation"] == {"half_pages": 3, "placed": 3, "blank": 0, "discarded": 0, "unassigned": 0}
    (copy_id,) = scan["copy_ids"]
    staged, assembled = ingest.events(copy_id)
    assert (staged.type, assembled.type) == ("copy_staged", "copy_assembled")
    payload = CopyAssembled.FromString(assembled.payload)
    assert [page.index for page in payload.pages] == [0, 1, 2]
    assert [page.is_masked for page in payload.pages] == [True, False, False]
    leaf = json.loads(assembled.leaf)
    assert leaf["action"] == "IMPORT"
    assert leaf["metadata"]["success"] is True
    assert "DUPONT" not in assembled.leaf.decode()
    assert ingest.rt.blobs.size(payload.source_sha256) == payload.source_size


def test_a_remainder_waits_for_a_person_and_loses_nothing(ingest: Ingest) -> None:
    """Seven pages in booklets of three: three copies, the last short, every page placed."""
    scan = ingest.imported(scan_of(ingest.folder, 7), exam(pages_per_booklet=3))
    assert scan["state"] == "NEEDS_REVIEW"
    assert len(scan["copy_ids"]) == 3
    assert [anomaly["code"] for anomaly in scan["anomalies"]] == ["REMAINDER_PAGES"]
    assert scan["conservation"]["placed"] == 7
    counts = [len(CopyAssembled.FromString(ingest.events(copy)[1].payload).pages) for copy in scan["copy_ids"]]
    assert counts == [3, 3, 1]


def test_the_same_bytes_again_are_an_anomaly_and_not_an_error(ingest: Ingest) -> None:
    """DUPLICATE_FILE names the earlier scan, in the same exam only."""
    data, first_exam = scan_of(ingest.folder, 1), exam()
    first = ingest.imported(data, first_exam)
    again = ingest.imported(data, first_exam)
    assert [(a["code"], a["detail"]) for a in again["anomalies"]] == [("DUPLICATE_FILE", {"scan_id": first["id"]})]
    assert again["state"] == "NEEDS_REVIEW"
    assert ingest.imported(data, exam())["anomalies"] == []


def test_an_attempt_that_is_repeated_stages_nothing_twice(ingest: Ingest) -> None:
    """The worker dies after staging: the next attempt goes on with the same copies."""
    scan_id, job_id = ingest.upload(scan_of(ingest.folder, 4), exam(pages_per_booklet=2))
    ingest.work(job_id)
    before = reading.scan(ingest.rt.db, scan_id)["copy_ids"]
    with ingest.rt.db.transaction() as tx:
        tx.run("UPDATE jobs SET state = 'READY', not_before = clock_timestamp() WHERE id = %s", (job_id,))
    ingest.work(job_id)
    after = reading.scan(ingest.rt.db, scan_id)
    assert after["copy_ids"] == before
    assert after["state"] == "DONE"
    assert [event.type for event in ingest.events(before[0])] == ["copy_staged", "copy_assembled"]


def test_markers_see_their_copies_with_the_header_painted_over(ingest: Ingest) -> None:
    """Masked for markers of the exam, unmasked for admins, not there for everybody else."""
    the_exam = exam()
    scan = ingest.imported(scan_of(ingest.folder, 1), the_exam)
    page_id = CopyAssembled.FromString(ingest.events(scan["copy_ids"][0])[1].payload).pages[0].page_id
    admin, marker = Principal(ADMIN, "admin", ("admin",)), Principal(new_id(), "marker", ("marker",))
    with pytest.raises(NotFound):
        reading.picture(ingest.rt.db, page_id, marker)
    with ingest.rt.db.transaction() as tx:
        tx.run(
            "INSERT INTO exams VALUES (%s, 'A4_single', 0, true, false, 1, %s)",
            (the_exam.exam_id, [marker.user_id]),
        )
    shown, whole = reading.picture(ingest.rt.db, page_id, marker), reading.picture(ingest.rt.db, page_id, admin)
    assert shown.is_masked
    assert not whole.is_masked
    assert shown.sha256 != whole.sha256
    with ingest.rt.db.transaction() as tx:
        tx.run(
            "UPDATE copy_access SET status = 'LOCKED', assigned_corrector_id = %s WHERE copy_id = %s",
            (new_id(), scan["copy_ids"][0]),
        )
    with pytest.raises(NotFound):
        reading.picture(ingest.rt.db, page_id, marker)


@pytest.mark.parametrize(
    ("data", "state", "reason"),
    [
        (b"%PDF-1.7\nnothing more", "REJECTED", "CORRUPTED_PDF"),
        (b"%PDF-1.4\n%%EOF\n", "REJECTED", "CORRUPTED_PDF"),
    ],
)
def test_a_broken_document_ends_with_a_reason(ingest: Ingest, data: bytes, state: str, reason: str) -> None:
    """REJECTED at the first attempt; no copy, no page, the reason on the scan."""
    scan = ingest.imported(data, exam())
    assert (scan["state"], scan["error_reason"], scan["copy_ids"]) == (state, reason, [])


def test_a_staged_copy_that_gets_no_pages_is_told_with_its_traceback(
    postgres_server: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The plan stands, the cut breaks its limit of size; the traceback names no student (domain.md 1.18)."""
    noise = Image.frombytes("RGB", (1500, 2100), os.urandom(3 * 1500 * 2100))
    noise.save(tmp_path / "noise.pdf", resolution=180)
    url = postgres_server.url(postgres_server.create_database("nopages"))
    room = Ingest(url, tmp_path, {"KORRIGO_IMPORT__OUTPUT_BYTES": str(1 << 20)})
    try:
        scan = room.imported((tmp_path / "noise.pdf").read_bytes(), exam())
    finally:
        room.process.close()
    (copy_id,) = scan["copy_ids"]
    assert scan["state"] == "REJECTED"
    [told] = [record for record in caplog.records if record.getMessage().startswith("Import failed for copy")]
    assert told.getMessage() == f"Import failed for copy {copy_id}: {scan['error_reason']}"
    text = JsonFormatter("ingest").format(told)
    assert "Traceback (most recent call last)" in json.loads(text)["exc_info"]
    assert json.loads(text)["copy_id"] == copy_id and "DUPONT" not in text
    for line in ("Async PDF import failed for exam", "Rasterization failed"):
        told = next(record for record in caplog.records if record.getMessage().startswith(line))
        text = JsonFormatter("ingest").format(told)
        assert "Traceback (most recent call last)" in json.loads(text)["exc_info"] and "DUPONT" not in text


@pytest.mark.skipif(not CORPORA.exists(), reason="CORPORA MISSING: ../shared is not beside this checkout")
@pytest.mark.allowed_skip("a checkout without ../shared")
def test_folded_booklets_come_out_in_reading_order(ingest: Ingest) -> None:
    """Twelve students, four pages each; conservation of the ground truth."""
    scan = ingest.imported((CORPORA / "scans/a3/clean_12x1.pdf").read_bytes(), exam("A3_to_A4", 4))
    assert scan["state"] == "DONE"
    assert len(scan["copy_ids"]) == 12
    counts = scan["conservation"]
    assert (counts["half_pages"], counts["placed"] + counts["blank"], counts["unassigned"]) == (48, 48, 0)
