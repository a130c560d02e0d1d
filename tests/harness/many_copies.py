"""Very many graded copies with some that are stuck, written straight into grading's tables: for what a sweep costs."""

from __future__ import annotations

from harness.whole_rooms import WholeRooms
from korrigo_kit.ids import new_id

STUCK = 40


def fill(rooms: WholeRooms, copies: int) -> None:
    """Write so many copies, each with its finalisation; STUCK of them have failed, STUCK have a lock that lingers."""
    exam, user = new_id(), new_id()
    rooms.sql(
        "INSERT INTO grading.exams (id, name, date, split_mode, pages_per_booklet, split_horizontal,"
        "   grading_structure, max_score, auto_validate, created_by)"
        " SELECT %s, name, date, split_mode, pages_per_booklet, split_horizontal, grading_structure, max_score,"
        "   auto_validate, created_by FROM grading.exams LIMIT 1",
        exam,
    )
    rooms.sql(
        "INSERT INTO grading.copies (id, exam_id, anonymous_id, status, assembly, created_by, updated_at, graded_at,"
        "   final_score) SELECT gen_random_uuid(), %s, 'many-' || n, CASE WHEN n <= %s THEN 'GRADING_FAILED'"
        "   WHEN n <= 2 * %s THEN 'LOCKED' ELSE 'GRADED' END, 1, %s, clock_timestamp() - interval '1 hour',"
        "   clock_timestamp(), 10 FROM generate_series(1, %s) n",
        exam, STUCK, STUCK, user, copies,
    )  # fmt: skip
    rooms.sql(
        "INSERT INTO grading.finalisations (id, copy_id, revision, request, state, manifest_sha256, score, max_score,"
        "   marker_id, requested_by, requested_at, error_reason, final_sha256, final_size, pages)"
        " SELECT gen_random_uuid(), id, 1, 1, CASE WHEN status = 'GRADED' THEN 'SUCCEEDED' ELSE 'FAILED' END, '', 10,"
        "   20, created_by, created_by, clock_timestamp() - interval '1 hour',"
        "   CASE WHEN status = 'GRADED' THEN NULL ELSE 'TIMEOUT' END, repeat('ab', 32), 9, 1"
        " FROM grading.copies WHERE anonymous_id LIKE 'many-%%'"
    )
    rooms.sql("ANALYZE grading.copies")
    rooms.sql("ANALYZE grading.finalisations")
