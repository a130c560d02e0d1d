"""`korrigo demo`: an exam from scan to verified final PDF, through the public API alone.

Uses the instance that runs on this home, or starts one for the time of the demo; with an address, the product that
answers there, wherever it runs. Every step that does not hold ends it with exit code 1: a demo that passes is a test of
the installation.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from korrigo.home import Home, is_in_use
from korrigo_kit.errors import Bug, Invalid, Timeout, Unauthenticated, Unavailable

app = typer.Typer(add_completion=False, rich_markup_mode=None)
SAMPLE = Path(__file__).parents[1] / "samples" / "booklets.pdf"
COPIES, PAGES_PER_COPY = 3, 2
QUESTIONS = {"ex1": 8, "ex2": 12}
MARKS = ({"ex1": 7.5, "ex2": 9}, {"ex1": 4, "ex2": 11.25}, {"ex1": 8, "ex2": 12})
ACTIONS = ("IMPORT", "VALIDATE", "LOCK", "CREATE_ANN", "FINALIZE")
_PATIENCE_SECONDS = 120.0
Say = Callable[[str], None]
Json = dict[str, Any]


@app.command()
def demo(
    url: Annotated[str, typer.Option(help="address of a running product; default: the one of this home")] = "",
    route: Annotated[
        list[str] | None, typer.Option(help="PREFIX=ADDRESS of paths that another address answers (repeatable)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on the last line")] = False,
) -> None:
    """Make an exam from sample scans, import, mark, finalise and verify it. Example: korrigo demo

    With --url the password of user admin is KORRIGO_ADMIN_PASSWORD; --route stands in for a gateway.
    """
    begun = time.monotonic()
    say: Say = (lambda text: typer.echo(text, err=True)) if as_json else typer.echo
    home = Home.locate()
    elsewhere = _routes(route or [])
    with nullcontext(url) if url else _instance(home, say) as address:
        results = _Story(address, home, say, elsewhere).tell()
    seconds = round(time.monotonic() - begun, 1)
    if as_json:
        typer.echo(json.dumps({"passed": True, "seconds": seconds, "copies": results}))
    else:
        typer.echo(f"The demo passed in {seconds} s; the marked copies:")
        for result in results:
            typer.echo(f"  {result['final_pdf']}")


@contextmanager
def _instance(home: Home, say: Say) -> Iterator[str]:
    """Give the address of the running instance, or of one that lives as long as the demo."""
    if is_in_use(home):
        yield _wait("the running instance", lambda: (home.state() or {}).get("is_ready") and home.state())["url"]
        return
    say("starting the product for the time of the demo")
    env = dict(os.environ)
    env.setdefault("KORRIGO_HTTP__PORT", "0")
    process = subprocess.Popen([sys.executable, "-m", "korrigo", "up"], env=env, stdout=subprocess.PIPE, text=True)
    try:
        yield _ready_url(process, say)
    finally:
        process.terminate()
        process.wait(_PATIENCE_SECONDS)


def _routes(given: list[str]) -> dict[str, str]:
    """Parse PREFIX=ADDRESS; raises Invalid INVALID_ROUTE."""
    found = {}
    for text in given:
        prefix, separator, address = text.partition("=")
        if not separator or not prefix.startswith("/") or not address.startswith(("http://", "https://")):
            raise Invalid("INVALID_ROUTE", f"{text} is not of the form /PREFIX=http://ADDRESS")
        found[prefix.rstrip("/")] = address.rstrip("/")
    return found


def _ready_url(process: subprocess.Popen[str], say: Say) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Korrigo is ready at "):
            return line.split()[-1]
        say(line.rstrip())
    raise Unavailable("START_FAILED", "`korrigo up` did not become ready; the lines above say why")


def _wait(what: str, look: Callable[[], Any]) -> Any:
    """Look again and again; raises Timeout DEMO_STEP_TIMEOUT."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            raise Timeout("DEMO_STEP_TIMEOUT", f"{what}: not within {_PATIENCE_SECONDS:g} s")
        time.sleep(0.2)
    return found


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Bug("DEMO_FAILED", f"the demo found that this does not hold: {what}")


def _password(home: Home) -> str:
    given = os.environ.get("KORRIGO_ADMIN_PASSWORD", "")
    if given or not home.admin_password_file.exists():
        return given
    return home.admin_password_file.read_text().strip()


class _Story:
    """The steps, in order, with one session of user admin."""

    def __init__(self, url: str, home: Home, say: Say, elsewhere: Mapping[str, str]) -> None:
        import httpx

        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self._elsewhere = sorted(elsewhere.items(), key=lambda route: -len(route[0]))
        self._say = say
        self._folder = home.root / "demo"
        self._home = home

    def _at(self, path: str) -> str:
        """Return where a path is answered: by the longest prefix that holds whole parts of it, as a gateway chooses."""
        for prefix, address in self._elsewhere:
            if path == prefix or path.startswith(f"{prefix}/"):
                return f"{address}{path}"
        return path

    def _call(self, method: str, path: str, **given: Any) -> Any:
        """Call the API; 503 and 404 while something is on its way are the caller's business."""
        answer = self._http.request(method, self._at(path), **given)
        if answer.is_error:
            raise Bug("DEMO_FAILED", f"{method} {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer

    def tell(self) -> list[Json]:
        """Do everything; return a line per copy."""
        self._login()
        exam = self._exam()
        copies = self._upload(exam)
        return [self._mark(copy_id, MARKS[at % len(MARKS)]) for at, copy_id in enumerate(copies)]

    def _login(self) -> None:
        body = {"username": "admin", "password": _password(self._home)}
        answer = self._http.post(self._at("/api/login"), json=body)
        if answer.status_code == 401:
            raise Unauthenticated("LOGIN_REFUSED", "the admin's password was changed; set KORRIGO_ADMIN_PASSWORD to it")
        _require(answer.status_code == 200, f"login answers 200, not {answer.status_code} {answer.text[:200]}")
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        self._http.cookies.clear()  # a script uses the token; a cookie would ask for its CSRF twin

    def _exam(self) -> str:
        body = {
            "name": f"Demo {time.strftime('%Y-%m-%d %H:%M:%S')}",
            "date": time.strftime("%Y-%m-%d"),
            "split_config": {"mode": "A4_single", "pages_per_booklet": PAGES_PER_COPY, "split_horizontal": True},
            "grading_structure": [
                {"id": key, "label": f"Exercise {at}", "points": points}
                for at, (key, points) in enumerate(QUESTIONS.items(), 1)
            ],
            "max_score": sum(QUESTIONS.values()),
            "auto_validate": True,
            "corrector_ids": [],
        }
        exam = self._call("POST", "/api/exams", json=body)
        self._say(f"exam {exam['name']}")
        return str(exam["id"])

    def _upload(self, exam_id: str) -> list[str]:
        files = {"file": (SAMPLE.name, SAMPLE.read_bytes(), "application/pdf")}
        scan_id = self._call("POST", "/api/scans", params={"exam_id": exam_id}, files=files)["scan_id"]

        def ended() -> Json | None:
            scan: Json = self._call("GET", f"/api/scans/{scan_id}")
            return scan if scan["state"] not in ("RECEIVED", "RUNNING") else None

        scan = _wait("the import", ended)
        _require(scan["state"] == "DONE", f"the scan is DONE, not {scan['state']} {scan.get('error')}")
        _require(scan["pages"] == COPIES * PAGES_PER_COPY, f"every page was found, not {scan['pages']}")
        _require(len(scan["copy_ids"]) == COPIES, f"there are {COPIES} copies, not {len(scan['copy_ids'])}")
        self._say(f"{scan['pages']} pages imported into {COPIES} copies")
        return [str(copy_id) for copy_id in scan["copy_ids"]]

    def _mark(self, copy_id: str, marks: Json) -> Json:
        copy = _wait(f"copy {copy_id} READY", lambda: self._copy_in(copy_id, "READY"))
        self._look(copy)
        lock = {"X-Lock-Token": self._call("POST", f"/api/copies/{copy_id}/lock", json={})["token"]}
        for page, text in enumerate(("Good: every step is justified.", "Here a sign is lost: −2 ≠ 2.")):
            box = {"page_index": page, "x": 0.12, "y": 0.32 + 0.1 * page, "w": 0.4, "h": 0.05}
            kind = "COMMENT" if page == 0 else "ERROR"
            body = box | {"type": kind, "content": text}
            self._call("POST", f"/api/copies/{copy_id}/annotations", json=body, headers=lock)
        scores = self._call(
            "PUT",
            f"/api/copies/{copy_id}/scores",
            json={"scores": marks, "appreciation": "Solid work."},
            headers=lock | {"If-Match": "*"},
        )
        _require(scores["total"] == sum(marks.values()), f"the total is the sum of the marks, not {scores['total']}")
        self._call("POST", f"/api/copies/{copy_id}/finalize", json={}, headers=lock)
        graded = _wait(f"copy {copy_id} GRADED", lambda: self._copy_in(copy_id, "GRADED", "GRADING_FAILED"))
        _require(graded["status"] == "GRADED", f"copy is GRADED, not {graded.get('grading_error_message')}")
        path = self._final(copy_id)
        self._remembered(copy_id)
        self._say(f"copy {graded['anonymous_id']}: {scores['total']} of {sum(QUESTIONS.values())}")
        return {"copy_id": copy_id, "total": scores["total"], "final_pdf": str(path)}

    def _copy_in(self, copy_id: str, *statuses: str) -> Json | None:
        answer = self._http.get(self._at(f"/api/copies/{copy_id}"))
        if answer.status_code == 404:  # staged a moment ago: the event is on its way (contract.md)
            return None
        copy: Json = answer.raise_for_status().json()
        return copy if copy["status"] in statuses else None

    def _look(self, copy: Json) -> None:
        _require(len(copy["pages"]) == PAGES_PER_COPY, f"the copy has {PAGES_PER_COPY} pages")
        for page in copy["pages"]:
            picture = self._http.get(self._at(page["image_url"]))
            _require(
                picture.status_code == 200 and picture.headers["content-type"].startswith("image/"),
                f"page {page['index']} has a picture",
            )

    def _final(self, copy_id: str) -> Path:
        answer = self._call("GET", f"/api/copies/{copy_id}/final-pdf")
        data: bytes = answer.content
        _require(data.startswith(b"%PDF-"), "the final document is a PDF")
        digest = hashlib.sha256(data).hexdigest()
        _require(answer.headers["etag"].strip('"') == digest, "the final PDF's ETag is the SHA-256 of its bytes")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{copy_id}.pdf"
        path.write_bytes(data)
        return path

    def _remembered(self, copy_id: str) -> None:
        def listed() -> list[Json] | None:
            items: list[Json] = self._call("GET", f"/api/audit/copies/{copy_id}")["items"]
            return items if {item["action"] for item in items} >= set(ACTIONS) else None

        items = _wait(f"{', '.join(ACTIONS)} in the audit trail", listed)
        finals = [item for item in items if item["action"] == "FINALIZE" and item["metadata"].get("success") is True]
        _require(len(finals) == 1, f"the audit trail holds one FINALIZE, not {len(finals)}")
