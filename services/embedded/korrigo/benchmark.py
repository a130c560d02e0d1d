"""What this machine does in a second: imports, answers to markers, final PDFs, on a scratch instance of its own.

Each figure stands beside what the same work costs with nothing around it, measured in the same run: the engine alone in
one process beside the import, an answer that asks nobody beside the markers' requests. Absolute figures are this
machine's; the ratios say what the product adds, and can be compared between machines.
"""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from korrigo.drills import documents
from korrigo.drills.desk import Desk
from korrigo.drills.scratch import ended, started

SAMPLE = Path(__file__).parent / "samples" / "booklets.pdf"
ANNOTATIONS = 5
_PATIENCE_SECONDS = 1800.0
_PIECE_PAGES = 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class Figures:
    """Seconds, milliseconds and things per second; `…_alone` is the same with nothing around it."""

    ready_seconds: float
    pages: int
    import_seconds: float
    import_pages_per_second: float
    engine_alone_pages_per_second: float
    requests: int
    request_ms_p50: float
    request_ms_p95: float
    answer_alone_ms_p50: float
    finals: int
    final_seconds: float
    finals_per_second: float

    @property
    def import_ratio(self) -> float:
        """What the import does of what the engine alone does in one process."""
        return self.import_pages_per_second / self.engine_alone_pages_per_second

    @property
    def request_ratio(self) -> float:
        """How many times as long a marker's request takes as one that asks nobody."""
        return self.request_ms_p50 / self.answer_alone_ms_p50

    def document(self) -> dict[str, Any]:
        """Return every figure by name, with three digits that count."""
        found = asdict(self) | {"import_ratio": self.import_ratio, "request_ratio": self.request_ratio}
        return {name: value if isinstance(value, int) else float(f"{value:.3g}") for name, value in found.items()}


def measure(copies: int, pages: int, markers: int, say: Say) -> Figures:
    """Start a scratch instance, take copies of so many pages through the whole story, throw it away."""
    scan = documents.photographed(SAMPLE.read_bytes(), copies * pages, f"bench {secrets.token_hex(4)}")
    say(f"the engine alone: {copies * pages} pages")
    alone = _engine_alone(scan, copies * pages)
    with _instance(say) as (url, password, ready):
        desk = Desk(url, "admin", password)
        try:
            exam_id = desk.exam("Benchmark", pages_per_copy=pages)
            say(f"importing {copies} copies of {pages} pages")
            began = time.monotonic()
            ids = desk.imported(desk.uploaded(exam_id, scan), _PATIENCE_SECONDS)
            imported = time.monotonic() - began
            idle = _answers_alone(desk)
            say(f"{markers} markers mark and finalise them")
            began = time.monotonic()
            asked = _marked(url, password, ids, markers)
            for copy_id in ids:
                desk.reached(copy_id, "GRADED", seconds=_PATIENCE_SECONDS)
            marked = time.monotonic() - began
        finally:
            desk.close()
    cuts = statistics.quantiles(asked, n=20)
    return Figures(
        ready_seconds=ready,
        pages=copies * pages,
        import_seconds=imported,
        import_pages_per_second=copies * pages / imported,
        engine_alone_pages_per_second=alone,
        requests=len(asked),
        request_ms_p50=statistics.median(asked) * 1000,
        request_ms_p95=cuts[18] * 1000,
        answer_alone_ms_p50=idle * 1000,
        finals=copies,
        final_seconds=marked,
        finals_per_second=copies / marked,
    )


def _engine_alone(scan: bytes, pages: int) -> float:
    """Picture every page in this process, without sandbox, store, database or broker; return pages per second."""
    from korrigo_ingest.engine.pictures import page_pictures

    with tempfile.TemporaryDirectory(prefix="korrigo-bench-") as folder:
        workdir = Path(folder)
        (workdir / "source.pdf").write_bytes(scan)
        page_pictures(workdir, pages=[{"index": 0}], prefix="warm")
        began = time.monotonic()
        for start in range(0, pages, _PIECE_PAGES):
            wanted = [{"index": index} for index in range(start, min(start + _PIECE_PAGES, pages))]
            page_pictures(workdir, pages=wanted, prefix=f"page-{start}")
        return pages / (time.monotonic() - began)


def _answers_alone(desk: Desk, times: int = 50) -> float:
    """Return the median seconds of an answer that asks neither database nor rooms."""
    return statistics.median(_timed(lambda: desk.ok("GET", "/api/health/live")) for _ in range(times))


def _timed(act: Callable[[], Any]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _marked(url: str, password: str, ids: Sequence[str], markers: int) -> list[float]:
    """Let markers without a pause lock, look at, annotate, score and finalise; return the seconds of each request."""
    waiting, asked, failed = list(ids), list[float](), list[Exception]()

    def mark() -> None:
        desk = Desk(url, "admin", password)
        try:
            while waiting and not failed:
                asked.extend(_mark(desk, waiting.pop()))
        except Exception as error:  # told by the thread that waits
            failed.append(error)
        finally:
            desk.close()

    threads = [threading.Thread(target=mark) for _ in range(markers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return asked


def _mark(desk: Desk, copy_id: str) -> Iterator[float]:
    tokens: list[str] = []
    yield _timed(lambda: tokens.append(desk.lock(copy_id)))
    (token,) = tokens
    yield _timed(lambda: desk.ok("GET", f"/api/copies/{copy_id}"))
    for number in range(ANNOTATIONS):
        fields = {"y": 0.3 + 0.1 * number, "content": f"Remark {number + 1}: shown, and right."}
        yield _timed(partial(_annotate, desk, copy_id, token, fields))
    yield _timed(lambda: desk.score(copy_id, token))
    yield _timed(lambda: desk.finalize(copy_id, token).raise_for_status())


def _annotate(desk: Desk, copy_id: str, token: str, fields: Mapping[str, Any]) -> None:
    desk.annotate(copy_id, token, **fields).raise_for_status()


@contextmanager
def _instance(say: Say) -> Iterator[tuple[str, str, float]]:
    """Give address, password and seconds until ready of an instance on a home of its own, thrown away after."""
    folder = Path(tempfile.mkdtemp(prefix="korrigo-bench-"))
    folder.chmod(0o755)  # as root the database runs under another user below this folder
    password = secrets.token_urlsafe(15)
    own = {"KORRIGO_HOME": str(folder / "home"), "KORRIGO_ADMIN_PASSWORD": password, "KORRIGO_HTTP__PORT": "0"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KORRIGO_")}
    say("starting a scratch instance")
    began = time.monotonic()
    try:
        process, url = started(kept | own | {"KORRIGO_BACKUP__NIGHTLY": "false"}, folder / "up.out")
        try:
            yield url, password, time.monotonic() - began
        finally:
            ended(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
