"""A good client of the HTTP contract: typed calls, and the documented retry.

Retry: a broken connection, 502, 503 and 504 are tried again until a deadline, with the same Idempotency-Key, the
same client-made ids and the same lock `client_id`. When an earlier try may have been applied, the answers that say
so (409, 412, 404 on delete) are resolved by looking at the resource, never by assuming.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from harness.processes import NotReady, wait_for

Json = dict[str, Any]
RETRIED = frozenset({502, 503, 504})
TERMINAL_SCAN = frozenset({"NEEDS_REVIEW", "DONE", "FAILED", "REJECTED"})
TERMINAL_COPY = frozenset({"GRADED", "GRADING_FAILED"})


def uuid7() -> str:
    """Make a UUIDv7, as clients do for annotation ids (RFC 9562, 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | random_bits
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def etag_of(document: Json) -> str:
    """Return the ETag that came with a document; a strong one is its version (decisions.md, HTTP)."""
    return str(document.get("_etag") or f'"{document["version"]}"')


class Refused(AssertionError):
    """The product answered with a problem; `reason` is its reason."""

    def __init__(self, response: httpx.Response) -> None:
        try:
            self.problem: Json = response.json()
        except ValueError:
            self.problem = {}
        self.status = response.status_code
        self.reason = str(self.problem.get("reason", ""))
        request = response.request
        super().__init__(f"{request.method} {request.url.path} -> {self.status} {response.text[:400]}")


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that this client holds."""

    copy_id: str
    token: str
    fence: int
    answer: Json

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Lock-Token": self.token}


@dataclass
class Tries:
    """How a call went: `number` of tries; more than one means an earlier one may have been applied."""

    number: int = 0

    @property
    def is_repeated(self) -> bool:
        return self.number > 1


class Client:
    """One user's session."""

    def __init__(self, url: str, *, patience_seconds: float = 0, timeout_seconds: float = 30) -> None:
        self.url = url
        self.patience_seconds = patience_seconds
        self.client_id = uuid7()
        self.user: Json = {}
        self.retries = 0
        self._tally = threading.Lock()
        self.http = httpx.Client(base_url=url, timeout=timeout_seconds, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    # ------------------------------------------------------------------------------------------------ transport
    def send(
        self, method: str, path: str, *, expect: Sequence[int] = (), tries: Tries | None = None, **given: Any
    ) -> httpx.Response:
        """Send with the documented retry; raises Refused on a status that is not expected (2xx by default)."""
        tries = tries or Tries()
        deadline = time.monotonic() + self.patience_seconds
        while True:
            tries.number += 1
            is_late = time.monotonic() > deadline
            try:
                response = self.http.request(method, path, **given)
            except httpx.TransportError:
                if is_late:
                    raise
            else:
                if response.status_code in expect or (not expect and response.is_success):
                    return response
                if response.status_code not in RETRIED or is_late:
                    raise Refused(response)
            with self._tally:
                self.retries += 1
            time.sleep(min(2.0, 0.2 * tries.number))

    def json(self, method: str, path: str, **given: Any) -> Json:
        """Send and return the JSON object."""
        response = self.send(method, path, **given)
        found = response.json()
        assert isinstance(found, dict), found
        return found | ({"_etag": response.headers["ETag"]} if "ETag" in response.headers else {})

    def items(self, path: str, **params: Any) -> list[Json]:
        """Read a whole list, page by page."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            page = self.json("GET", path, params=params | ({"cursor": cursor} if cursor else {}))
            found += page["items"]
            cursor = page["next_cursor"]
            if not cursor:
                return found

    # ------------------------------------------------------------------------------------------------ accounts
    def login(self, username: str, password: str) -> Self:
        """Log in and keep the bearer token."""
        answer = self.json("POST", "/api/login", json={"username": username, "password": password})
        self.user = answer["user"]
        self.http.headers["Authorization"] = f"{answer['token_type']} {answer['access_token']}"
        self.http.cookies.clear()  # a script uses the token; the cookie would ask for CSRF
        return self

    def create_user(self, username: str, password: str, roles: Sequence[str]) -> Json:
        """Make an account."""
        return self.json("POST", "/api/users", json={"username": username, "password": password, "roles": list(roles)})

    # --------------------------------------------------------------------------------------------- exams, scans
    def create_exam(
        self,
        name: str,
        *,
        mode: str = "A4_single",
        pages_per_booklet: int = 0,
        questions: Mapping[str, float] | None = None,
        auto_validate: bool = True,
        corrector_ids: Sequence[str] = (),
    ) -> Json:
        """Make an exam; `questions` maps labels to points (their sum is the maximum)."""
        points = dict(questions or {"q1": 8, "q2": 12})
        body = {
            "name": name,
            "date": "2026-01-12",
            "split_config": {"mode": mode, "pages_per_booklet": pages_per_booklet, "split_horizontal": True},
            "grading_structure": [{"id": q, "label": f"Question {q}", "points": p} for q, p in points.items()],
            "max_score": sum(points.values()),
            "auto_validate": auto_validate,
            "corrector_ids": list(corrector_ids),
        }
        return self.json("POST", "/api/exams", json=body, headers={"Idempotency-Key": uuid7()}, expect=(201,))

    def upload(self, exam_id: str, path: Path, *, request_id: str | None = None) -> Json:
        """Upload a PDF; the same Idempotency-Key on every try."""
        headers = {"Idempotency-Key": uuid7()} | ({"X-Request-ID": request_id} if request_id else {})
        data = path.read_bytes()
        return self.json(
            "POST",
            "/api/scans",
            params={"exam_id": exam_id},
            files={"file": (path.name, data, "application/pdf")},
            headers=headers,
            expect=(202,),
        )

    def scan(self, scan_id: str) -> Json:
        """Read a scan."""
        return self.json("GET", f"/api/scans/{scan_id}")

    def wait_scan(self, scan_id: str, *, seconds: float = 120) -> Json:
        """Poll a scan until it is DONE, NEEDS_REVIEW, FAILED or REJECTED."""

        def ended() -> Json | None:
            found = self.scan(scan_id)
            return found if found["state"] in TERMINAL_SCAN else None

        return wait_for(f"scan {scan_id}", ended, seconds=seconds, every_seconds=0.25)

    # ------------------------------------------------------------------------------------------------ copies
    def copies(self, exam_id: str, **params: Any) -> list[Json]:
        """List the copies of an exam."""
        return self.items(f"/api/exams/{exam_id}/copies", **params)

    def copy(self, copy_id: str) -> Json:
        """Read a copy."""
        return self.json("GET", f"/api/copies/{copy_id}")

    def wait_copy(self, copy_id: str, statuses: Sequence[str], *, seconds: float = 60) -> Json:
        """Poll a copy until it has one of the statuses (404 until the event of its staging arrived)."""

        def reached() -> Json | None:
            found = self.copy(copy_id)
            return found if found["status"] in statuses else None

        return wait_for(f"copy {copy_id} {'/'.join(statuses)}", reached, seconds=seconds, every_seconds=0.2)

    def page_image(self, page: Json, *, width: int | None = None) -> bytes:
        """Fetch a page's picture by its opaque address."""
        url = httpx.URL(page["image_url"])
        if width is not None:
            url = url.copy_merge_params({"width": width})
        return self.send("GET", str(url)).content

    def validate(self, copy_id: str, **body: Any) -> Json:
        """Validate a copy; a repeated try that finds it READY has succeeded."""
        tries = Tries()
        try:
            return self.json("POST", f"/api/copies/{copy_id}/validate", json=body, tries=tries)
        except Refused as refused:
            if tries.is_repeated and refused.status == 409:
                found = self.copy(copy_id)
                if found["status"] == "READY":
                    return found
            raise

    # ------------------------------------------------------------------------------------------------ locks
    def lock(self, copy_id: str, **body: Any) -> Lock:
        """Take or refresh the lock; the client_id makes a repeated try return the same token."""
        body = {"client_id": self.client_id} | body
        answer = self.json("POST", f"/api/copies/{copy_id}/lock", json=body, expect=(200, 201))
        return Lock(copy_id, answer["token"], answer["fence"], answer)

    def heartbeat(self, lock: Lock) -> Json:
        """Keep the lock alive."""
        return self.json("POST", f"/api/copies/{lock.copy_id}/lock/heartbeat", headers=lock.headers)

    def unlock(self, lock: Lock) -> None:
        """Give the lock back (idempotent)."""
        self.send("DELETE", f"/api/copies/{lock.copy_id}/lock", headers=lock.headers)

    # ------------------------------------------------------------------------------------------------ annotations
    def annotations(self, copy_id: str) -> list[Json]:
        """List the annotations of a copy."""
        return self.items(f"/api/copies/{copy_id}/annotations")

    def annotate(self, lock: Lock, **fields: Any) -> Json:
        """Create an annotation under a client-made id, so that a repeated try is the same annotation."""
        body = {
            "id": uuid7(), "page_index": 0, "x": 0.1, "y": 0.5, "w": 0.3, "h": 0.05,
            "type": "COMMENT", "content": "", "score_delta": None,
        } | fields  # fmt: skip
        return self.json(
            "POST",
            f"/api/copies/{lock.copy_id}/annotations",
            json=body,
            headers=lock.headers,
            expect=(200, 201),
        )

    def patch_annotation(self, lock: Lock, annotation: Json, **fields: Any) -> Json:
        """Change an annotation; 412 on a repeated try is success when the current one is what we wanted."""
        path = f"/api/copies/{lock.copy_id}/annotations/{annotation['id']}"
        headers = lock.headers | {"If-Match": etag_of(annotation)}
        tries = Tries()
        try:
            return self.json("PATCH", path, json=fields, headers=headers, tries=tries)
        except Refused as refused:
            if tries.is_repeated and refused.status == 412:
                current = next(a for a in self.annotations(lock.copy_id) if a["id"] == annotation["id"])
                if all(current[key] == value for key, value in fields.items()):
                    return current
            raise

    def delete_annotation(self, lock: Lock, annotation: Json) -> None:
        """Delete an annotation; gone on a repeated try is success."""
        path = f"/api/copies/{lock.copy_id}/annotations/{annotation['id']}"
        tries = Tries()
        headers = lock.headers | {"If-Match": etag_of(annotation)}
        try:
            self.send("DELETE", path, headers=headers, tries=tries)
        except Refused as refused:
            if not (tries.is_repeated and refused.status in (404, 410)):
                raise

    # ------------------------------------------------------------------------------------------------ scores
    def put_scores(self, lock: Lock, scores: Mapping[str, Any], appreciation: str | None = None) -> Json:
        """Write scores on top of what is there (If-Match by the current ETag)."""
        path = f"/api/copies/{lock.copy_id}/scores"
        etag = self.send("GET", path).headers["ETag"]
        body: Json = {"scores": dict(scores)} | ({"appreciation": appreciation} if appreciation is not None else {})
        tries = Tries()
        try:
            return self.json("PUT", path, json=body, headers=lock.headers | {"If-Match": etag}, tries=tries)
        except Refused as refused:
            if tries.is_repeated and refused.status == 412:
                current = self.json("GET", path)
                if all(current["scores"].get(key) == value for key, value in scores.items()):
                    return current
            raise

    # ------------------------------------------------------------------------------------------------ finalise
    def finalize(self, lock: Lock) -> Json:
        """Ask for the final PDF; already running or done on a repeated try is success."""
        tries = Tries()
        headers = lock.headers | {"Idempotency-Key": uuid7()}
        try:
            return self.json(
                "POST", f"/api/copies/{lock.copy_id}/finalize", headers=headers, tries=tries, expect=(202,)
            )
        except Refused as refused:
            done = {"FINALIZE_IN_PROGRESS", "COPY_ALREADY_GRADED"}
            if tries.is_repeated and refused.reason in done:
                return {"copy_id": lock.copy_id, "status": self.copy(lock.copy_id)["status"]}
            raise

    def wait_graded(self, copy_id: str, *, seconds: float = 120) -> Json:
        """Wait for GRADED; NotReady at once when it failed."""
        found = self.wait_copy(copy_id, sorted(TERMINAL_COPY), seconds=seconds)
        if found["status"] != "GRADED":
            raise NotReady(f"copy {copy_id}: {found['status']} {found['grading_error_message']}")
        return found

    def final_pdf(self, copy_id: str, **headers: str) -> httpx.Response:
        """Fetch the final PDF."""
        return self.send("GET", f"/api/copies/{copy_id}/final-pdf", headers=headers, expect=(200, 206, 304, 416))

    def audit(self, copy_id: str) -> list[Json]:
        """List the audit events of a copy."""
        return self.items(f"/api/audit/copies/{copy_id}")

    def wait_audit(self, copy_id: str, action: str, *, seconds: float = 10) -> list[Json]:
        """Read the audit list once it holds this action (it answers within 2 s of the fact)."""

        def listed() -> list[Json] | None:
            found = self.audit(copy_id)
            return found if any(event["action"] == action for event in found) else None

        return wait_for(f"{action} in the audit list", listed, seconds=seconds)
