"""What people do in a drill, over HTTP: upload, lock, mark, finalise. One user's session per Desk.

Answers are returned as they come, because a refusal is often what a drill wants to see; `ok` insists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from korrigo.drills.patience import wait_for
from korrigo_kit.errors import Bug

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]
QUESTIONS = {"ex1": 12, "ex2": 8}


class Desk:
    """One user with a token; safe for several threads."""

    def __init__(self, url: str, username: str, password: str) -> None:
        import httpx

        self.url = url
        self.username = username
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        asked = {"username": username, "password": password}
        self.token = str(self.ok("POST", "/api/login", json=asked)["access_token"])
        self._http.headers["Authorization"] = f"Bearer {self.token}"
        self._http.cookies.clear()  # a script uses the token; the cookie would ask for its CSRF twin

    def send(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Send and return the answer, whatever it is."""
        return self._http.request(method, path, **given)

    def ok(self, method: str, path: str, **given: Any) -> Any:
        """Send and return what is answered; raises Bug DRILL_REFUSED when it is an error."""
        answer = self.send(method, path, **given)
        if answer.is_error:
            raise Bug("DRILL_REFUSED", f"{method} {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json() if answer.content else None

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    # ------------------------------------------------------------------------------------- exams, scans
    def exam(self, name: str, *, pages_per_copy: int = 1, corrector_ids: Sequence[str] = ()) -> str:
        """Make an exam whose copies become READY by themselves; return its id."""
        body = {
            "name": name,
            "date": "2026-05-20",
            "split_config": {"mode": "A4_single", "pages_per_booklet": pages_per_copy, "split_horizontal": True},
            "grading_structure": [{"id": key, "label": key, "points": points} for key, points in QUESTIONS.items()],
            "max_score": sum(QUESTIONS.values()),
            "auto_validate": True,
            "corrector_ids": list(corrector_ids),
        }
        return str(self.ok("POST", "/api/exams", json=body)["id"])

    def upload(self, exam_id: str, data: bytes) -> httpx.Response:
        """Upload a PDF."""
        files = {"file": ("scan.pdf", data, "application/pdf")}
        return self.send("POST", "/api/scans", params={"exam_id": exam_id}, files=files)

    def uploaded(self, exam_id: str, data: bytes) -> str:
        """Upload a PDF that must be accepted; return its scan's id."""
        answer = self.upload(exam_id, data)
        if answer.status_code != 202:
            raise Bug("DRILL_REFUSED", f"an upload was answered {answer.status_code}: {answer.text[:300]}")
        return str(answer.json()["scan_id"])

    def scan(self, scan_id: str) -> Json:
        """Read a scan."""
        return dict(self.ok("GET", f"/api/scans/{scan_id}"))

    def imported(self, scan_id: str, seconds: float = 60) -> list[str]:
        """Wait until a scan is DONE and its copies READY; return their ids."""
        wait_for("the import", lambda: self.scan(scan_id)["state"] == "DONE", seconds)
        done = self.scan(scan_id)
        for copy_id in done["copy_ids"]:
            self.reached(copy_id, "READY", seconds=seconds)
        return [str(copy_id) for copy_id in done["copy_ids"]]

    # ------------------------------------------------------------------------------------- copies
    def status(self, copy_id: str) -> str:
        """Tell the status of a copy; "" while nobody answers."""
        answer = self.send("GET", f"/api/copies/{copy_id}")
        return str(answer.json()["status"]) if answer.is_success else ""

    def reached(self, copy_id: str, *statuses: str, seconds: float = 60) -> str:
        """Wait until a copy has one of these statuses."""
        what = f"copy {copy_id} {' or '.join(statuses)}"
        return wait_for(what, lambda: found if (found := self.status(copy_id)) in statuses else None, seconds)

    def lock(self, copy_id: str, **wish: Any) -> str:
        """Lock a copy; return the token."""
        return str(self.ok("POST", f"/api/copies/{copy_id}/lock", json=wish)["token"])

    def beat(self, copy_id: str, token: str) -> None:
        """Keep a lock, as an open page does."""
        self.send("POST", f"/api/copies/{copy_id}/lock/heartbeat", headers={"X-Lock-Token": token})

    def unlock(self, copy_id: str, token: str) -> None:
        """Give a lock back, should it still be held."""
        self.send("DELETE", f"/api/copies/{copy_id}/lock", headers={"X-Lock-Token": token})

    def annotate(self, copy_id: str, token: str, **fields: Any) -> httpx.Response:
        """Write an annotation."""
        body = {"page_index": 0, "x": 0.1, "y": 0.3, "w": 0.4, "h": 0.05, "type": "COMMENT", "content": "Seen."}
        headers = {"X-Lock-Token": token}
        return self.send("POST", f"/api/copies/{copy_id}/annotations", json=body | fields, headers=headers)

    def score(self, copy_id: str, token: str) -> None:
        """Give every point."""
        headers = {"X-Lock-Token": token, "If-Match": "*"}
        self.ok("PUT", f"/api/copies/{copy_id}/scores", json={"scores": QUESTIONS}, headers=headers)

    def finalize(self, copy_id: str, token: str) -> httpx.Response:
        """Ask for the final PDF."""
        return self.send("POST", f"/api/copies/{copy_id}/finalize", json={}, headers={"X-Lock-Token": token})

    def marked(self, copy_id: str) -> str:
        """Lock a copy and mark it completely; return the token."""
        token = self.lock(copy_id)
        self.annotate(copy_id, token).raise_for_status()
        self.score(copy_id, token)
        return token
