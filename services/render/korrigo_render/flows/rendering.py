"""A request becomes a final PDF: asked by an event, done by a job, told by an event.

`request` is started by the consumer, `run` by a pool child, `on_failed` in the transaction that records a failed
attempt. The PDF is put into the store before the transaction that names it; what a crash leaves unnamed is
garbage, never the reverse.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from korrigo_kit import jobs, outbox
from korrigo_kit.blobs import Blob
from korrigo_kit.db import Tx
from korrigo_kit.errors import Invalid
from korrigo_kit.jobs import Failure, Job
from korrigo_kit.room import Runtime, Work, add_blob_ref
from korrigo_kit.sandbox import EngineError, Limits
from korrigo_kit.telemetry.logs import Stopwatch
from korrigo_protos.grading.v1.events_pb2 import RenderRequested
from korrigo_protos.render.v1.events_pb2 import Manifest, Rendered, RenderFailed
from korrigo_render.errors import of_engine
from korrigo_render.settings import RenderSettings

log = logging.getLogger("korrigo.render")

JOB_KIND = "render"
_ENGINE = "korrigo_render.engine"


def request(tx: Tx, asked: RenderRequested) -> None:
    """Note what is asked for and enqueue the job, once per (copy, revision, request)."""
    key = f"{asked.copy_id}:{asked.revision}:{asked.request}"
    job_id = jobs.enqueue(
        tx,
        kind=JOB_KIND,
        subject_id=asked.copy_id,
        payload={
            "copy_id": asked.copy_id,
            "revision": asked.revision,
            "request": asked.request,
            "manifest_sha256": asked.manifest_sha256,
        },
        dedupe_key=key,
    )
    tx.run(
        "INSERT INTO renders (copy_id, revision, request, manifest_sha256, job_id) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        (asked.copy_id, asked.revision, asked.request, asked.manifest_sha256, job_id),
    )


def run(rt: Runtime, work: Work) -> None:
    """Make and verify the PDF of one request; raises Invalid, Timeout or Bug by the engine's reason."""
    watch = Stopwatch()
    order = work.job.payload
    log.info("rendering copy %s revision %d", order["copy_id"], order["revision"], extra={"copy_id": order["copy_id"]})
    made = _make(rt, work, order["manifest_sha256"])
    final = rt.blobs.put_file(work.folder / "final.pdf")
    if final.sha256 != made["sha256"]:
        raise Invalid("FINAL_CHANGED", "the final PDF changed between verification and storing")
    with rt.db.transaction() as tx:
        _record(tx, work.job, final, made, watch.milliseconds)
    log.info("rendered copy %s revision %d", order["copy_id"], order["revision"], extra={"copy_id": order["copy_id"]})


def try_out(rt: Runtime, manifest: bytes, folder: Path) -> dict[str, Any]:
    """Make and verify `folder/final.pdf` outside any job; nothing is stored, nothing is told.

    Errors as `run`. Started by `korrigo render`, for whoever looks for the cause of a failure.
    """
    return _build(rt, manifest, folder, rt.settings.get(RenderSettings).cap_seconds)


def _make(rt: Runtime, work: Work, manifest_sha256: str) -> dict[str, Any]:
    return _build(rt, rt.blobs.read(manifest_sha256), work.folder, work.remaining_seconds())


def _build(rt: Runtime, data: bytes, folder: Path, remaining_seconds: float) -> dict[str, Any]:
    manifest = _manifest(data)
    rt.blobs.fetch(manifest.source_sha256, folder / "source.pdf")
    (folder / "manifest.json").write_text(json.dumps(as_json(manifest)))
    limits = _limits(rt, len(manifest.pages), remaining_seconds)
    made = _in_sandbox(rt, f"{_ENGINE}.append:append", {}, folder, limits)
    checked = {
        "final": "final.pdf",
        "source": "source.pdf",
        "expected_pages": made["pages"],
        "annotated_pages": made["annotated_pages"],
    }
    _in_sandbox(rt, f"{_ENGINE}.verify:verify", checked, folder, limits)
    return made


def _manifest(data: bytes) -> Manifest:
    try:
        return Manifest.FromString(data)
    except DecodeError:
        raise Invalid("MANIFEST_INVALID", "the manifest cannot be read") from None


def _limits(rt: Runtime, pages: int, remaining_seconds: float) -> Limits:
    settings = rt.settings.get(RenderSettings)
    wall = min(settings.base_seconds + settings.page_seconds * pages, settings.cap_seconds, remaining_seconds)
    return Limits(wall_seconds=wall, memory_bytes=settings.memory_bytes, output_bytes=settings.output_bytes)


def _in_sandbox(rt: Runtime, target: str, arguments: dict[str, Any], folder: Path, limits: Limits) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = rt.sandbox.run(target, arguments, workdir=folder, limits=limits)
    except EngineError as error:
        raise of_engine(error.reason, error.message, error.detail) from error
    return answer


def as_json(manifest: Manifest) -> dict[str, Any]:
    """Write a manifest as the JSON that the engine reads."""
    return {
        "v": manifest.version,
        "copy_id": manifest.copy_id,
        "anonymous_id": manifest.anonymous_id,
        "revision": manifest.revision,
        "exam": {"name": manifest.exam.name, "date": manifest.exam.date},
        "pages": [
            {"page_id": page.page_id, "index": page.index, "width": page.width, "height": page.height}
            for page in manifest.pages
        ],
        "annotations": [_annotation(item) for item in manifest.annotations],
        "questions": [_question(item) for item in manifest.questions],
        "total_hundredths": manifest.total_hundredths,
        "max_hundredths": manifest.max_hundredths,
        "appreciation": manifest.appreciation,
        "marker_code": manifest.marker_code,
        "finalized_at": manifest.finalized_at,
        "source_sha256": manifest.source_sha256,
        "public_url": manifest.public_url or None,
        "language": manifest.language or "fr",
    }


def _annotation(item: Manifest.Annotation) -> dict[str, Any]:
    has_delta = item.HasField("score_delta_hundredths")
    return {
        "id": item.id,
        "page_index": item.page_index,
        "x": item.x,
        "y": item.y,
        "w": item.w,
        "h": item.h,
        "type": item.type,
        "content": item.content,
        "score_delta_hundredths": item.score_delta_hundredths if has_delta else None,
        "question_label": item.question_label or None,
        "strokes": [
            {
                "width": stroke.width,
                "points": [
                    [point.x, point.y, point.pressure] if point.HasField("pressure") else [point.x, point.y]
                    for point in stroke.points
                ],
            }
            for stroke in item.strokes
        ],
    }


def _question(item: Manifest.Question) -> dict[str, Any]:
    return {
        "id": item.id,
        "label": item.label,
        "max_hundredths": item.max_hundredths,
        "score_hundredths": item.score_hundredths if item.HasField("score_hundredths") else None,
        "state": item.state,
        "remark": item.remark,
        "depth": item.depth,
    }


def _record(tx: Tx, job: Job, final: Blob, made: dict[str, Any], duration_ms: int) -> None:
    order = job.payload
    tx.run(
        "UPDATE renders SET state = 'RENDERED', reason = NULL, final_sha256 = %s, final_size = %s, pages = %s,"
        " source_pages = %s, finished_at = clock_timestamp() WHERE copy_id = %s AND revision = %s AND request = %s",
        (
            final.sha256,
            final.size,
            made["pages"],
            made["source_pages"],
            order["copy_id"],
            order["revision"],
            order["request"],
        ),
    )
    add_blob_ref(tx, final.sha256, "render", f"{order['copy_id']}:{order['revision']}")
    outbox.emit(
        tx,
        type="rendered",
        subject=("copy", order["copy_id"]),
        payload=Rendered(
            copy_id=order["copy_id"],
            revision=order["revision"],
            request=order["request"],
            final_sha256=final.sha256,
            final_size=final.size,
            pages=made["pages"],
            source_pages=made["source_pages"],
            manifest_sha256=order["manifest_sha256"],
            attempt=job.attempt,
            duration_ms=duration_ms,
        ),
    )
    jobs.finish(tx, job)


def on_failed(tx: Tx, job: Job, failure: Failure) -> None:
    """Tell grading of a failed attempt; the last one closes the request."""
    order = job.payload
    log.error(
        "PDF generation failed for copy %s (attempt %d): %s: %s",
        order["copy_id"],
        failure.attempt,
        failure.reason,
        failure.message,
        extra={"copy_id": order["copy_id"], "reason": failure.reason, "detail": failure.detail},
        # The playbook looks for the traceback here (domain.md 1.18).
        exc_info=failure.error,
    )
    if failure.is_final:
        tx.run(
            "UPDATE renders SET state = 'FAILED', reason = %s, finished_at = clock_timestamp()"
            " WHERE copy_id = %s AND revision = %s AND request = %s",
            (failure.reason, order["copy_id"], order["revision"], order["request"]),
        )
    outbox.emit(
        tx,
        type="render_failed",
        subject=("copy", order["copy_id"]),
        payload=RenderFailed(
            copy_id=order["copy_id"],
            revision=order["revision"],
            request=order["request"],
            attempt=failure.attempt,
            reason=failure.reason,
            is_final=failure.is_final,
        ),
    )
