"""What a person typed or is called, and every secret, stays out of logs, events and broker messages.

One whole story, its failures included, with seeds that occur nowhere else; then every log file and every table is
searched for them. Where the database may hold a text is written down here, column by column.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from harness.client import Client, Json, Lock, uuid7
from harness.instance import Instance
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for

# Columns that may hold what a person typed or is called; everything else must be free of it.
TEXT_COLUMNS = frozenset(
    {
        ("grading", "users", "username"),
        ("grading", "users", "account_key"),
        ("grading", "users", "email"),
        ("grading", "exams", "name"),
        ("grading", "exams", "grading_structure"),
        ("grading", "annotations", "content"),
        ("grading", "scores", "appreciation"),
        ("grading", "event_texts", "text"),
        ("grading", "idempotency_keys", "response"),
        ("ingest", "scans", "filename"),
    }
)
SCHEMAS = ("ingest", "grading", "render", "audit", "pgmq", "playbook")
SECRETS = ("password", "token", "key")


@dataclass(frozen=True)
class Told:
    """The seeds by what they are, and ids by which the search proves that it looks at the right place."""

    seeds: Mapping[str, str]
    ids: Mapping[str, str]


class Story:
    """Everything that an evening of marking says and gets wrong."""

    def __init__(self, instance: Instance, admin: Client, folder: Path) -> None:
        self.instance, self.admin, self.folder = instance, admin, folder
        self.mark = secrets.token_hex(5)
        self.seeds: dict[str, str] = {"admin password": instance.admin_password}
        self.ids: dict[str, str] = {}

    def seed(self, what: str, text: str) -> str:
        """Make a text that occurs nowhere else."""
        self.seeds[what] = f"{text}{self.mark}{len(self.seeds):02}"
        return self.seeds[what]

    def tell(self) -> Told:
        """Live through all of it."""
        with Client(self.instance.url, patience_seconds=20) as marker:
            self.accounts(marker)
            copy_id = self.scans(marker)
            lock = self.marking(marker, copy_id)
            self.mistakes(marker, lock)
            self.end(marker, lock)
            self.takeover(marker)
        return Told(self.seeds, self.ids)

    def accounts(self, marker: Client) -> None:
        """Names, addresses, passwords: right, wrong, taken, and typed into the wrong field."""
        name, password = self.seed("user name", "quentin.dubois"), self.seed("password", "Secret-of-")
        email = self.seed("e-mail", "q.dubois@lycee.example.")
        wish = {"username": name, "password": password, "roles": ["marker"], "email": email}
        self.ids["user_id"] = self.admin.json("POST", "/api/users", json=wish)["id"]
        for again in (wish, wish | {"username": name.upper()}, wish | {"email": "x"}, wish | {"password": "short"}):
            assert self.admin.http.post("/api/users", json=again).status_code in (409, 422)
        wrong, stranger = self.seed("wrong password", "Wrong-"), self.seed("unknown user", "nobody-called-")
        for username, tried in ((name, wrong), (stranger, wrong), (self.seed("password as name", "Oops-"), "x")):
            answer = httpx.post(
                f"{self.instance.url}/api/login", json={"username": username, "password": tried}, timeout=30
            )
            assert answer.status_code == 401
        marker.login(name, password)
        token = self.seeds["access token"] = marker.http.headers["Authorization"].split()[1]
        self.seeds["token signature"] = token.rsplit(".", 1)[1]
        self.seeds["CSRF token"] = marker.json("GET", "/api/csrf")["csrf_token"]
        change = {"current_password": wrong, "new_password": self.seed("new password", "Newer-")}
        assert marker.http.post("/api/me/password", json=change).status_code == 422
        bad = f"Bearer {token[:-6]}AAAAAA"
        assert httpx.get(f"{self.instance.url}/api/me", headers={"Authorization": bad}, timeout=30).status_code == 401

    def scans(self, marker: Client) -> str:
        """A good scan, one that is no PDF and one that breaks, each named after a pupil."""
        questions = {"q1": 8.0, "q2": 12.0}
        exam = self.admin.create_exam(
            self.seed("exam name", "Concours blanc "), questions=questions, corrector_ids=[marker.user["id"]]
        )
        self.ids["exam_id"] = exam["id"]
        self.admin.json("PATCH", f"/api/exams/{exam['id']}", json={"name": self.seed("new exam name", "Bac ")})
        path = a4_scan(self.folder / "a.pdf", [Label(210, 1, 1), Label(210, 1, 2)])
        broken = self.folder / "broken.pdf"
        broken.write_bytes(path.read_bytes()[:600])

        def upload(what: str, data: bytes) -> httpx.Response:
            file = (self.seed(what, "DUPONT_Jean_") + ".pdf", data, "application/pdf")
            return self.admin.http.post("/api/scans", params={"exam_id": exam["id"]}, files={"file": file})

        good, bad = upload("file name", path.read_bytes()), upload("broken file name", broken.read_bytes())
        assert (good.status_code, bad.status_code) == (202, 202)
        assert upload("refused file name", b"no PDF").status_code == 415
        assert self.admin.wait_scan(bad.json()["scan_id"])["state"] in ("FAILED", "REJECTED")
        self.ids["scan_id"] = good.json()["scan_id"]
        copy_id = str(self.admin.wait_scan(self.ids["scan_id"])["copy_ids"][0])
        self.ids["copy_id"] = copy_id
        self.admin.wait_copy(copy_id, ["READY"])
        return copy_id

    def marking(self, marker: Client, copy_id: str) -> Lock:
        """Comments and marks."""
        lock = marker.lock(copy_id)
        self.seeds["lock token"] = lock.token
        made = marker.annotate(lock, content=self.seed("annotation", "Marie copied from her neighbour "))
        marker.patch_annotation(lock, made, content=self.seed("changed annotation", "Marie did not "))
        gone = marker.annotate(lock, content=self.seed("deleted annotation", "Oh Marie "))
        marker.delete_annotation(lock, gone)
        marker.put_scores(lock, {"q1": 3}, self.seed("appreciation", "Her mother was ill "))
        return lock

    def mistakes(self, marker: Client, lock: Lock) -> None:
        """Everything that is refused, with a name in every place where a request can carry one."""
        path, token = f"/api/copies/{lock.copy_id}", lock.headers
        stray = self.seed("stray text", "stray-name-")
        wish = {"page_index": 0, "x": 0.1, "y": 0.4, "w": 0.2, "h": 0.1, "type": "COMMENT"}
        json_type = {"Content-Type": "application/json"}
        calls: list[tuple[str, str, Json]] = [
            ("POST", f"{path}/annotations", {"json": wish | {"content": f"{stray} \U0001f600"}, "headers": token}),
            ("POST", f"{path}/annotations", {"json": wish | {"content": stray, "x": stray}, "headers": token}),
            ("POST", f"{path}/annotations", {"json": wish | {stray: stray}, "headers": token}),
            ("POST", f"{path}/annotations", {"json": wish | {"type": stray}, "headers": token}),
            ("POST", f"{path}/annotations", {"json": wish | {"question_id": stray}, "headers": token}),
            ("POST", f"{path}/annotations", {"content": f'{{"content": "{stray}'.encode(), "headers": json_type}),
            ("PUT", f"{path}/scores", {"json": {"scores": {stray: 1}}, "headers": token | {"If-Match": "*"}}),
            ("PUT", f"{path}/scores", {"json": {"scores": {"q1": stray}}, "headers": token | {"If-Match": "*"}}),
            ("PUT", f"{path}/scores", {"json": {"appreciation": stray}, "headers": token | {"If-Match": stray}}),
            ("POST", f"{path}/finalize", {"headers": {"X-Lock-Token": self.seed("invalid lock token", "tok-")}}),
            ("POST", f"{path}/lock", {"json": {"client_id": f"{stray} "}}),
            ("GET", f"/api/nowhere/{stray}", {}),
            ("GET", f"/api/copies/{stray}", {}),
            ("GET", "/api/exams", {"params": {"cursor": stray, stray: stray}}),
            ("GET", "/api/audit/events", {"params": {"action": stray}}),
            ("POST", "/api/exams", {"json": {"name": stray, "date": stray}}),
        ]  # fmt: skip
        for method, url, given in calls:
            assert 400 <= marker.http.request(method, url, **given).status_code < 500, (method, url)
        odd = [("X-Request-ID", f"{stray} é"), ("Cookie", f"a={stray}"), ("Referer", f"http://x/{stray}")]
        odd += [(name, stray) for name in ("User-Agent", "X-Forwarded-For", "Accept-Language", "traceparent")]
        coded = [(name.encode(), value.encode()) for name, value in odd]
        assert marker.http.get("/api/me", headers=coded).status_code == 200
        forbidden = {"reason": self.seed("refused reason", "because of Marie ")}
        assert marker.http.post(f"{path}/reopen", json=forbidden).status_code == 403
        assert self.admin.http.post(f"{path}/validate", json=forbidden).status_code == 409

    def end(self, marker: Client, lock: Lock) -> None:
        """The final PDF, an appeal, and the marking after it."""
        path = f"/api/copies/{lock.copy_id}"
        assert marker.http.post(f"{path}/finalize", headers=lock.headers).status_code == 409
        marker.put_scores(lock, {"q2": 4})
        marker.finalize(lock)
        self.admin.wait_graded(lock.copy_id)
        assert self.admin.final_pdf(lock.copy_id).status_code == 200
        assert marker.http.get(f"{path}/final-pdf").status_code == 403
        self.admin.json("POST", f"{path}/reopen", json={"reason": self.seed("reason", "Marie appealed ")})

    def takeover(self, marker: Client) -> None:
        """A lock that an admin ends, and a logout."""
        copy_id = self.ids["copy_id"]
        self.seeds["second lock token"] = marker.lock(copy_id, client_id=uuid7()).token
        reason = {"reason": self.seed("unlock reason", "Quentin fell asleep ")}
        self.admin.send("DELETE", f"/api/locks/{copy_id}", json=reason)
        self.admin.wait_audit(copy_id, "UNLOCK")
        email = {"email": self.seed("new e-mail", "dubois@home.example.")}
        self.admin.json("PATCH", f"/api/users/{self.ids['user_id']}", json=email)
        marker.send("POST", "/api/logout")


@pytest.fixture(scope="module")
def told(instance: Instance, admin: Client, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Tell the story once per instance."""
    return Story(instance, admin, tmp_path_factory.mktemp("hygiene")).tell()


def found_in(told: Told, data: bytes) -> list[str]:
    """Name the seeds that some bytes hold, as they are or escaped."""
    lowered = data.lower()
    return [what for what, seed in told.seeds.items() if seed.lower().encode() in lowered]


def test_no_log_holds_a_name_a_text_or_a_secret(instance: Instance, told: Told) -> None:
    files = [path for path in instance.logs.rglob("*") if path.is_file()]
    files += [path for path in instance.home.glob("*.out") if path.is_file()]

    def is_written() -> bool:
        everything = b"".join(path.read_bytes() for path in files)
        return all(some_id.encode() in everything for some_id in told.ids.values())

    wait_for("the ids of the story in the logs", is_written, seconds=10)
    leaks = {path.name: found for path in files if (found := found_in(told, path.read_bytes()))}
    assert leaks == {}


def _rows(connection: psycopg.Connection[tuple[object, ...]]) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield every value of every table as bytes: schema, table, column, value."""
    tables = connection.execute(
        "SELECT table_schema, table_name, array_agg(column_name::text ORDER BY ordinal_position)"
        " FROM information_schema.columns WHERE table_schema = ANY(%s) AND (table_schema, table_name) IN"
        " (SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE')"
        " GROUP BY 1, 2",
        (list(SCHEMAS),),
    ).fetchall()
    for schema, table, columns in tables:
        assert isinstance(schema, str) and isinstance(table, str) and isinstance(columns, list)
        for row in connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))):
            for column, value in zip(columns, row, strict=True):
                yield schema, table, column, value if isinstance(value, bytes) else str(value).encode()


def _database_url(instance: Instance) -> str:
    secret = instance.home / "secrets" / "database-url"
    return secret.read_text().strip() if secret.exists() else instance.env["KORRIGO_DATABASE__URL"]


def test_only_the_named_columns_hold_texts_and_none_a_secret(instance: Instance, told: Told) -> None:
    places: dict[tuple[str, str, str], set[str]] = {}
    seen: set[tuple[str, str]] = set()
    with psycopg.connect(_database_url(instance)) as connection:
        for schema, table, column, value in _rows(connection):
            seen.add((schema, table))
            if found := found_in(told, value):
                places.setdefault((schema, table, column), set()).update(found)
    assert {("grading", "outbox"), ("ingest", "outbox"), ("audit", "records")} <= seen
    assert {place: found for place, found in places.items() if place not in TEXT_COLUMNS} == {}
    kept = set().union(*places.values())
    assert {what for what in kept if any(word in what for word in SECRETS)} == set()
    # the search finds what is there: the texts themselves lie where they belong
    assert kept >= {"user name", "new exam name", "file name", "changed annotation", "appreciation", "reason"}
    assert places[("ingest", "scans", "filename")] >= {"file name", "broken file name"}
    assert "unlock reason" in places[("grading", "event_texts", "text")]


def test_metrics_hold_no_name_and_no_id(instance: Instance, told: Told) -> None:
    text = instance.get("/metrics").content
    assert b"grading_" in text
    assert found_in(told, text) == []
    assert [what for what, some_id in told.ids.items() if some_id.encode() in text] == []


def test_the_audit_trail_holds_no_text(admin: Client, told: Told) -> None:
    events = admin.send("GET", f"/api/audit/copies/{told.ids['copy_id']}").content
    everything = admin.send("GET", "/api/audit/events", params={"limit": 500}).content
    assert found_in(told, events) == found_in(told, everything) == []
    for action in (b"REOPEN", b"UNLOCK", b"SCORE", b"CREATE_ANN", b"DELETE_ANN", b"FINALIZE"):
        assert action in events
    assert b"_commitment" in events
