"""A scan becomes copies: inspect, plan, stage, cut, picture, assemble. The story of one import job.

    RECEIVED ──claim──> RUNNING ──all copies assembled──> DONE | NEEDS_REVIEW (anomalies for a person)
                          │
                          ├─the document's fault──> REJECTED
                          └─attempts spent──> FAILED

Every step can be repeated: copies are staged once, a copy that is assembled is left alone, stored bytes are named
by their content. Native work runs in the sandbox, in pieces of at most 20 pages. A page that cannot be pictured
among others that can is kept and named by an anomaly; when none can, the scan is rejected.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from korrigo_ingest import events
from korrigo_ingest.domain.plan import HalfPage, Mode, PageSize, SplitConfig, SplitPlan, split
from korrigo_ingest.errors import ocr_error_type, of_engine
from korrigo_ingest.metrics import import_duration_seconds, ocr_errors_total, pages_bucket
from korrigo_ingest.settings import ImportSettings, UploadSettings
from korrigo_kit import jobs
from korrigo_kit.db import Tx, UniqueViolation
from korrigo_kit.errors import Invalid, Timeout
from korrigo_kit.ids import new_id, random_code
from korrigo_kit.jobs import Failure, Job
from korrigo_kit.room import Runtime, Work, add_blob_ref
from korrigo_kit.sandbox import EngineError, Limits
from korrigo_kit.telemetry.logs import Stopwatch
from korrigo_protos.ingest.v1.events_pb2 import Anomaly, Booklet, Page

log = logging.getLogger("grading.import")

_ENGINE = "korrigo_ingest.engine"
# Cutting an A3 page between two copies costs half a second; 60 pages stay far below the cap of 120 s.
CUT_PAGES = 60
_SCAN = (
    "id::text AS id, exam_id::text AS exam_id, state, sha256, size, split_mode, pages_per_booklet, split_horizontal,"
    " pages, uploaded_by::text AS uploaded_by, job_id::text AS job_id, created_at"
)


@dataclass(frozen=True, slots=True)
class _Staged:
    """A staged copy: its id, its place in the plan, whether its pages are known already."""

    copy_id: str
    position: int
    is_assembled: bool


def run(rt: Runtime, work: Work) -> None:
    """Make one attempt at an import; raises Invalid for what the document is guilty of, Timeout, Bug."""
    watch = Stopwatch()
    scan = _begin(rt, work.job)
    log.info(
        "Starting async PDF import for exam %s, file %s",
        scan["exam_id"],
        events.redacted_name(scan["sha256"]),
        extra={"exam_id": scan["exam_id"], "scan_id": scan["id"]},
    )
    rt.blobs.fetch(scan["sha256"], work.folder / "source.pdf")
    found = _inspect(rt, work)
    sizes = [PageSize(page["width"], page["height"]) for page in found["pages"]]
    plan = split(sizes, SplitConfig(Mode(scan["split_mode"]), scan["pages_per_booklet"], scan["split_horizontal"]))
    copies = _stage(rt, work.job, scan, found, plan)
    _assemble_all(rt, work, scan, found, plan, copies)
    _finish(rt, work.job, scan)
    import_duration_seconds.labels("success", pages_bucket(found["page_count"])).observe(watch.seconds)


def _begin(rt: Runtime, job: Job) -> dict[str, Any]:
    with rt.db.transaction() as tx:
        return tx.row(
            "UPDATE scans SET state = 'RUNNING', error_reason = NULL, error_message = NULL,"
            f" updated_at = clock_timestamp() WHERE id = %s RETURNING {_SCAN}",
            (job.payload["scan_id"],),
        )


def _inspect(rt: Runtime, work: Work) -> dict[str, Any]:
    upload = rt.settings.get(UploadSettings)
    arguments = {"max_pages": upload.max_pages, "max_page_points": upload.max_page_points}
    # How many pages there are is not known yet: structure alone is read, so one page's time must do for all.
    found: dict[str, Any] = _in_sandbox(rt, work, "inspection:inspect_pdf", arguments, pages=20)
    return found


def _in_sandbox(rt: Runtime, work: Work, target: str, arguments: Mapping[str, Any], pages: int) -> Any:
    bounds = rt.settings.get(ImportSettings)
    wall = min(bounds.base_seconds + bounds.page_seconds * pages, bounds.cap_seconds, work.remaining_seconds())
    limits = Limits(
        wall_seconds=wall,
        cpu_seconds=int(bounds.cap_seconds),
        memory_bytes=bounds.memory_bytes,
        output_bytes=bounds.output_bytes,
    )
    try:
        return rt.sandbox.run(f"{_ENGINE}.{target}", dict(arguments), workdir=work.folder, limits=limits)
    except EngineError as error:
        line = "Rasterization timeout" if error.reason == "TIMEOUT" else f"Rasterization failed: {error.reason}"
        fields = {"reason": error.reason, "detail": error.detail, "scan_id": work.job.subject_id}
        log.exception(line, extra=fields)
        raise of_engine(error.reason, error.message, error.detail) from error


def _stage(rt: Runtime, job: Job, scan: Mapping[str, Any], found: Mapping[str, Any], plan: SplitPlan) -> list[_Staged]:
    # A random code may be taken already; then the whole step is repeated with others.
    for _ in range(5):
        try:
            with rt.db.transaction() as tx:
                return _stage_once(tx, job, scan, found, plan)
        except UniqueViolation:
            log.info("anonymous code taken, drawing again", extra={"scan_id": scan["id"]})
    raise Invalid("ANONYMOUS_CODES_EXHAUSTED", "no free anonymous code was found")


def _stage_once(tx: Tx, job: Job, scan: Mapping[str, Any], found: Mapping[str, Any], plan: SplitPlan) -> list[_Staged]:
    jobs.progress(tx, job, {"stage": "staged", "pages": found["page_count"], "copies": len(plan.copies)})
    rows = tx.all(
        "SELECT copy_id::text AS copy_id, position, assembly > 0 AS is_assembled FROM scan_copies"
        " WHERE scan_id = %s ORDER BY position",
        (scan["id"],),
    )
    if rows:
        return [_Staged(**row) for row in rows]
    staged = []
    for position in range(len(plan.copies)):
        copy_id, code = new_id(), random_code()
        tx.run(
            "INSERT INTO scan_copies (copy_id, scan_id, position, anonymous_id) VALUES (%s, %s, %s, %s)",
            (copy_id, scan["id"], position, code),
        )
        events.copy_staged(tx, scan, copy_id, code)
        staged.append(_Staged(copy_id, position, False))
    for anomaly in plan.anomalies:
        tx.run(
            "INSERT INTO anomalies (id, scan_id, copy_id, code, scan_page, detail) VALUES (%s, %s, %s, %s, %s, %s)",
            (
                new_id(),
                scan["id"],
                staged[anomaly.copy].copy_id,
                anomaly.code.value,
                anomaly.page_indexes[0] if len(anomaly.page_indexes) == 1 else None,
                orjson.dumps({**anomaly.detail, "page_indexes": anomaly.page_indexes}).decode(),
            ),
        )
    tx.run(
        "UPDATE scans SET pages = %s, half_pages = %s, is_repaired = %s, updated_at = clock_timestamp() WHERE id = %s",
        (found["page_count"], len(plan.half_pages), found["repaired"], scan["id"]),
    )
    return staged


def _assemble_all(
    rt: Runtime,
    work: Work,
    scan: Mapping[str, Any],
    found: Mapping[str, Any],
    plan: SplitPlan,
    copies: Sequence[_Staged],
) -> None:
    todo = [copy for copy in copies if not copy.is_assembled]
    if not todo:
        return
    wanted = [[_request(half) for half in plan.copies[copy.position]] for copy in todo]
    cut: list[Mapping[str, Any]] = []
    for piece in _pieces(wanted):
        arguments = {"copies": piece, "clean": found["clean"], "prefix": f"copy-{len(cut)}"}
        cut += _in_sandbox(rt, work, "cutting:cut_copies", arguments, pages=sum(map(len, piece)))
    pictures = _pictures(rt, work, plan, todo)
    _require_a_readable_page(pictures)
    for copy, source in zip(todo, cut, strict=True):
        _assemble(rt, work, scan, plan.copies[copy.position], copy, source, pictures[copy.position])


def _pieces(copies: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Sequence[Mapping[str, Any]]]]:
    """Group copies so that one piece of cutting stays within its wall time; a long copy is a piece of its own."""
    pieces: list[list[Sequence[Mapping[str, Any]]]] = []
    for copy in copies:
        if not pieces or sum(map(len, pieces[-1])) + len(copy) > CUT_PAGES:
            pieces.append([])
        pieces[-1].append(copy)
    return pieces


def _request(half: HalfPage) -> dict[str, Any]:
    return {"index": half.page_index, "clip": list(half.clip) if half.clip else None}


def _pictures(
    rt: Runtime, work: Work, plan: SplitPlan, copies: Sequence[_Staged]
) -> dict[int, list[Mapping[str, Any]]]:
    """Picture every half page of these copies, in pieces; the answer is by position of the copy."""
    bounds = rt.settings.get(ImportSettings)
    halves = [(copy.position, half) for copy in copies for half in plan.copies[copy.position]]
    made: dict[int, list[Mapping[str, Any]]] = {copy.position: [] for copy in copies}
    for start in range(0, len(halves), bounds.range_pages):
        piece = halves[start : start + bounds.range_pages]
        pages = [
            {**_request(half), "mask": bounds.masked_fraction if half.starts_booklet else 0.0} for _, half in piece
        ]
        for (position, _), answer in zip(piece, _piece(rt, work, pages, start), strict=True):
            made[position].append(_store(rt, work, answer))
    return made


def _piece(
    rt: Runtime, work: Work, pages: Sequence[Mapping[str, Any]], start: int
) -> Sequence[Mapping[str, Any]]:
    """Picture some pages; when that breaks a limit, one by one, so that a bad page costs only itself."""
    arguments = {"pages": pages, "prefix": f"picture-{start}"}
    try:
        found: Sequence[Mapping[str, Any]] = _in_sandbox(
            rt, work, "pictures:page_pictures", arguments, pages=len(pages)
        )
        return found
    except (Invalid, Timeout) as error:
        if len(pages) == 1:
            is_slow = isinstance(error, Timeout)
            return [{"ok": False, "reason": error.reason, "message": error.message, "is_slow": is_slow}]
        return [_piece(rt, work, [page], start + number)[0] for number, page in enumerate(pages)]


def _store(rt: Runtime, work: Work, picture: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put a picture (and its masked twin) into the store, and free the folder of it."""
    if not picture["ok"]:
        log.error("Rasterization failed: %s", picture["reason"], extra={"scan_id": work.job.subject_id})
        return picture
    for key in ("file", "masked_file"):
        if picture.get(key):
            path = work.folder / picture[key]
            rt.blobs.put_file(path)
            path.unlink()
    return picture


def _require_a_readable_page(pictures: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    answers = [picture for made in pictures.values() for picture in made]
    if answers and not any(picture["ok"] for picture in answers):
        if any(picture.get("is_slow") for picture in answers):
            # A loaded machine may do better at the next attempt.
            raise Timeout(answers[0]["reason"], answers[0]["message"])
        raise of_engine(answers[0]["reason"], answers[0]["message"])


def _assemble(
    rt: Runtime,
    work: Work,
    scan: Mapping[str, Any],
    halves: Sequence[HalfPage],
    copy: _Staged,
    source: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]],
) -> None:
    stored = rt.blobs.put_file(work.folder / source["file"])
    pages, booklets = _pages(scan, halves, source, pictures)
    with rt.db.transaction() as tx:
        jobs.progress(tx, work.job, {"stage": "assembling", "copy": copy.position + 1})
        for page, half, picture, booklet in zip(pages, halves, pictures, _owners(pages, booklets), strict=True):
            _insert_page(tx, scan, copy, page, half, picture, booklet)
        add_blob_ref(tx, stored.sha256, "copy", copy.copy_id)
        tx.run(
            "UPDATE scan_copies SET assembly = 1, source_sha256 = %s WHERE copy_id = %s", (stored.sha256, copy.copy_id)
        )
        events.copy_assembled(
            tx,
            scan,
            copy_id=copy.copy_id,
            assembly=1,
            pages=pages,
            anomalies=_open_anomalies(tx, scan["id"], copy.copy_id),
            booklets=booklets,
            source=(stored.sha256, stored.size),
        )
    log.info(
        "Successfully imported copy %s with %d pages",
        copy.copy_id,
        len(pages),
        extra={"copy_id": copy.copy_id, "scan_id": scan["id"]},
    )


def _pages(
    scan: Mapping[str, Any],
    halves: Sequence[HalfPage],
    source: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]],
) -> tuple[list[Page], list[Booklet]]:
    pages: list[Page] = []
    booklets: list[Booklet] = []
    for index, (half, shape, picture) in enumerate(zip(halves, source["pages"], pictures, strict=True)):
        page = Page(
            page_id=new_id(),
            index=index,
            width=shape["width"],
            height=shape["height"],
            is_masked=half.starts_booklet,
            picture_sha256=picture.get("sha256", ""),
            masked_picture_sha256=picture.get("masked_sha256") or picture.get("sha256", ""),
            scan_id=scan["id"],
        )
        if half.starts_booklet or not booklets:
            booklets.append(Booklet(booklet_id=new_id(), position=len(booklets), start_page=half.page_index + 1))
        booklet = booklets[-1]
        booklet.start_page = min(booklet.start_page, half.page_index + 1)
        booklet.end_page = max(booklet.end_page, half.page_index + 1)
        booklet.page_ids.append(page.page_id)
        pages.append(page)
    return pages, booklets


def _owners(pages: Sequence[Page], booklets: Sequence[Booklet]) -> list[str]:
    owner = {page_id: booklet.booklet_id for booklet in booklets for page_id in booklet.page_ids}
    return [owner[page.page_id] for page in pages]


def _insert_page(
    tx: Tx,
    scan: Mapping[str, Any],
    copy: _Staged,
    page: Page,
    half: HalfPage,
    picture: Mapping[str, Any],
    booklet_id: str,
) -> None:
    tx.run(
        "INSERT INTO pages (page_id, scan_id, copy_id, booklet_id, copy_index, scan_page, side, width, height,"
        " is_masked, is_blank, mime, picture_sha256, masked_picture_sha256)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            page.page_id,
            scan["id"],
            copy.copy_id,
            booklet_id,
            page.index,
            half.page_index,
            half.side.value,
            page.width,
            page.height,
            page.is_masked,
            bool(picture.get("is_blank")),
            picture.get("mime"),
            page.picture_sha256 or None,
            page.masked_picture_sha256 or None,
        ),
    )
    for sha256 in {page.picture_sha256, page.masked_picture_sha256} - {""}:
        add_blob_ref(tx, sha256, "page", page.page_id)
    if not picture["ok"]:
        tx.run(
            "INSERT INTO anomalies (id, scan_id, copy_id, code, scan_page, detail)"
            " VALUES (%s, %s, %s, 'PAGE_UNREADABLE', %s, jsonb_build_object('reason', %s::text))",
            (new_id(), scan["id"], copy.copy_id, half.page_index, picture["reason"]),
        )


def _open_anomalies(tx: Tx, scan_id: str, copy_id: str) -> list[Anomaly]:
    rows = tx.all(
        "SELECT code, scan_page FROM anomalies WHERE scan_id = %s AND (copy_id = %s OR copy_id IS NULL)"
        " AND resolved_at IS NULL ORDER BY created_at, id",
        (scan_id, copy_id),
    )
    return [Anomaly(code=row["code"], scan_page=-1 if row["scan_page"] is None else row["scan_page"]) for row in rows]


def _finish(rt: Runtime, job: Job, scan: Mapping[str, Any]) -> None:
    with rt.db.transaction() as tx:
        open_ones = tx.row(
            "SELECT count(*) AS n FROM anomalies WHERE scan_id = %s AND resolved_at IS NULL", (scan["id"],)
        )["n"]
        state = "NEEDS_REVIEW" if open_ones else "DONE"
        tx.run(
            "UPDATE scans SET state = %s, updated_at = clock_timestamp(), finished_at = clock_timestamp()"
            " WHERE id = %s",
            (state, scan["id"]),
        )
        copies = tx.all(
            "SELECT copy_id::text AS copy_id FROM scan_copies WHERE scan_id = %s ORDER BY position", (scan["id"],)
        )
        events.scan_finished(tx, scan, state, "", [row["copy_id"] for row in copies])
        jobs.finish(tx, job)
    log.info("scan %s is %s", scan["id"], state, extra={"scan_id": scan["id"], "exam_id": scan["exam_id"]})


def on_failed(tx: Tx, job: Job, failure: Failure) -> None:
    """Name the failure on the scan; the last one ends it, and every staged copy without pages is told of."""
    scan = tx.row(f"SELECT {_SCAN} FROM scans WHERE id = %s", (job.payload["scan_id"],))
    fields = {"scan_id": scan["id"], "exam_id": scan["exam_id"], "reason": failure.reason, "detail": failure.detail}
    log.error(
        "Async PDF import failed for exam %s (attempt %d/3): %s: %s",
        scan["exam_id"],
        failure.attempt,
        failure.reason,
        failure.message,
        extra=fields,
        exc_info=failure.error,
    )
    if not failure.is_final:
        return
    is_refused = ocr_error_type(failure.reason) in ("invalid_pdf",) or failure.reason == "RESOURCE_LIMIT"
    state = "REJECTED" if is_refused else "FAILED"
    tx.run(
        "UPDATE scans SET state = %s, error_reason = %s, error_message = %s, updated_at = clock_timestamp(),"
        " finished_at = clock_timestamp() WHERE id = %s",
        (state, failure.reason, failure.message[:500], scan["id"]),
    )
    copies = tx.all(
        "SELECT copy_id::text AS copy_id, assembly FROM scan_copies WHERE scan_id = %s ORDER BY position",
        (scan["id"],),
    )
    for row in copies:
        if row["assembly"] == 0:
            # With its traceback, which the playbook reads (domain.md 1.18).
            log.error(
                "Import failed for copy %s: %s",
                row["copy_id"],
                failure.reason,
                extra={**fields, "copy_id": row["copy_id"]},
                exc_info=failure.error,
            )
            events.copy_import_failed(tx, scan, row["copy_id"], failure.reason)
    events.scan_finished(tx, scan, state, failure.reason, [row["copy_id"] for row in copies])
    seconds = max(0.0, (tx.row("SELECT clock_timestamp() AS now")["now"] - scan["created_at"]).total_seconds())
    duration = import_duration_seconds.labels("failed", pages_bucket(scan["pages"]))
    errors = ocr_errors_total.labels(ocr_error_type(failure.reason))
    # After the commit: where it is lost all of this is done again, and would be counted twice.
    tx.after_commit(lambda: duration.observe(seconds))
    tx.after_commit(errors.inc)
