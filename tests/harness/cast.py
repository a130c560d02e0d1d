"""Who may stand before the product, and real things to stand before: for the tests of who may do what.

The things are made once and nothing that a test may send changes them: copies are graded, or locked by somebody
who is none of the principals, so that what is allowed is refused by the state and not by the right.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

from harness.client import Client, Json, Lock
from harness.pdfs import a4_booklets
from harness.processes import wait_for

ROLES = ("student", "lead_marker", "scan_operator", "auditor", "admin")
# marker: corrector of the exam, its copies are assigned to him; colleague: corrector of it too, nothing is assigned
# to him; stranger: corrector of another exam.
MARKERS = ("marker", "colleague", "stranger")
# Bearers of a token that opens nothing: signed by somebody else, revoked, of an account before its first password.
OUTSIDERS = ("anonymous", "forged", "revoked", "unready")
PRINCIPALS = (*OUTSIDERS, *MARKERS, *ROLES)
NAMED_FILE = "DUPONT_Jean.pdf"


@dataclass(frozen=True, slots=True)
class Person:
    """One principal: its HTTP session and, where there is one, its account."""

    name: str
    http: httpx.Client
    user_id: str = ""
    username: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True)
class Things:
    """What the calls are about: an exam with a graded and a locked copy, another exam with a copy, a scan."""

    exam: Json
    scan_id: str
    graded_id: str
    locked_id: str
    annotation: Json
    lock: Lock
    other_exam: Json
    other_copy_id: str
    other_page_id: str

    @property
    def ids(self) -> dict[str, str]:
        """Fill the parameters of a path; `copy_id` is the locked copy."""
        return {
            "exam_id": self.exam["id"],
            "scan_id": self.scan_id,
            "copy_id": self.locked_id,
            "annotation_id": self.annotation["id"],
        }


def _part(document: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def forged_token(token: str, **changes: object) -> str:
    """Return a token with other claims under the signature of the first."""
    header, claims, signature = token.split(".")
    told = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    return f"{header}.{_part(told | changes)}.{signature}"


def unsigned_token(**claims: object) -> str:
    """Return a token of the algorithm `none` that claims to be an admin's."""
    told = {"aud": "korrigo", "sub": "0", "sid": "0", "roles": ["admin"], "exp": int(time.time()) + 600}
    return f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(told | claims)}."


class Cast(dict[str, Person]):
    """The principals by name; their sessions are closed with it."""

    def __init__(self, admin: Client, suffix: str) -> None:
        super().__init__()
        self._admin, self._suffix, self._stack = admin, suffix, ExitStack()

    def __enter__(self) -> Self:
        try:
            self._gather()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _gather(self) -> None:
        roles = {name: name for name in ROLES} | dict.fromkeys(MARKERS, "marker")
        for name, role in roles.items():
            self.enter(name, role)
        token = self["student"].http.headers["Authorization"].split()[1]
        self._bearer("anonymous", None)
        self._bearer("forged", forged_token(token, roles=["admin"]))
        revoked = self.enter("revoked", "admin")
        self._admin.json("PATCH", f"/api/users/{revoked.user_id}", json={"active": False})
        self.enter("unready", "admin", must_change_password=True)
        self.enter("holder", "lead_marker")

    def _bearer(self, name: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        http = httpx.Client(base_url=self._admin.url, headers=headers, timeout=30, trust_env=False)
        self[name] = Person(name, self._stack.enter_context(http))

    def enter(self, name: str, role: str, **more: object) -> Person:
        """Make an account and log it in."""
        username, password = f"{name}-{self._suffix}", f"{name}-{self._suffix}-secret"
        wish = {"username": username, "password": password, "roles": [role]} | more
        user = self._admin.json("POST", "/api/users", json=wish)
        client = self._stack.enter_context(Client(self._admin.url, patience_seconds=20))
        self[name] = Person(name, client.login(username, password).http, user["id"], username, password)
        return self[name]


def prepare(admin: Client, people: Mapping[str, Person], folder: Path) -> Things:
    """Import, mark and lock what the calls are about."""
    correctors = [people["marker"].user_id, people["colleague"].user_id]
    questions = {"q1": 8.0, "q2": 12.0}
    exam = admin.create_exam("Whose", pages_per_booklet=2, questions=questions, corrector_ids=correctors)
    other = admin.create_exam("Elsewhere", questions=questions, corrector_ids=[people["stranger"].user_id])
    path = a4_booklets(folder / NAMED_FILE, document=200, booklets=2, pages=2)
    scan = admin.wait_scan(admin.upload(exam["id"], path)["scan_id"])
    apart = a4_booklets(folder / "apart.pdf", document=201, booklets=1, pages=1)
    apart_scan = admin.wait_scan(admin.upload(other["id"], apart)["scan_id"])
    graded_id, locked_id = scan["copy_ids"]
    other_copy = admin.wait_copy(apart_scan["copy_ids"][0], ["READY"])
    for copy_id in (graded_id, locked_id):
        admin.wait_copy(copy_id, ["READY"])
    with Client(admin.url, patience_seconds=20) as marker:
        marker.login(people["marker"].username, people["marker"].password)
        lock = marker.lock(graded_id)
        marker.put_scores(lock, {"q1": 5, "q2": 5}, "fine")
        marker.finalize(lock)
        marker.unlock(marker.lock(locked_id))  # assigns the copy to him
    with Client(admin.url, patience_seconds=20) as holder:
        holder.login(people["holder"].username, people["holder"].password)
        held = holder.lock(locked_id)
        annotation = holder.annotate(held, content="kept")
    admin.wait_graded(graded_id)
    wait_for("the audit trail", lambda: len(admin.audit(locked_id)) >= 5, seconds=10)
    return Things(
        exam, scan["id"], graded_id, locked_id, annotation, held,
        other, other_copy["id"], other_copy["pages"][0]["page_id"],
    )  # fmt: skip
