"""Incidents without an instance: levels, names, report, journal, redaction."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.alerts import ESCALATION, load
from korrigo.home import Home
from korrigo.incidents import journal
from korrigo.incidents.book import Book
from korrigo.incidents.redaction import Redactor
from korrigo_kit.errors import NotFound
from korrigo_kit.incidents import levels, report
from korrigo_kit.incidents.record import Entry, Incident
from korrigo_kit.incidents.words import language_of

START = datetime(2026, 1, 12, 3, 12, tzinfo=UTC)


def at(minutes: float) -> str:
    return (START + timedelta(minutes=minutes)).isoformat(timespec="milliseconds")


def incident(**more: object) -> Incident:
    values = {
        "id": "2026-01-12-03-12-workers-down", "title": "WorkersDown: nobody works", "priority": "P0",
        "severity": "critical", "created_at": at(2), "started_at": at(0), "alertname": "WorkersDown",
        "timeline": [
            Entry(at(-3), "command", "backup create (exit 0, 9 s)"),
            Entry(at(0), "alert", "WorkersDown: no worker"),
            Entry(at(4), "command", "doctor scenario broker (exit 1, 2 s)"),
            Entry(at(6), "note", "cause: the <b>disk</b> was `full`\n## Not a heading"),
            Entry(at(8), "command", "recover_stuck_copies --dry-run (exit 0, 1 s)"),
            Entry(at(9), "command", "recover_stuck_copies (exit 0, 1 s)"),
            Entry(at(12), "resolved", "WorkersDown"),
        ],
    } | more  # fmt: skip
    return Incident(**values)  # type: ignore[arg-type]


def test_levels_are_those_of_the_escalation_table() -> None:
    table = load(ESCALATION)["levels"]
    assert {p: {int(n): s for n, s in clock.items()} for p, clock in table.items()} == levels.CLOCKS


@pytest.mark.parametrize(
    ("priority", "seconds", "expected"),
    [
        ("P0", 0, 1), ("P0", 299, 1), ("P0", 300, 2), ("P0", 900, 3), ("P0", 1800, 4), ("P0", 90_000, 4),
        ("P1", 0, 2), ("P1", 7199, 2), ("P1", 7200, 3), ("P2", 86_399, 2), ("P2", 86_400, 3), ("P3", 9e9, 2),
    ],
)  # fmt: skip
def test_the_level_follows_the_clock(priority: str, seconds: float, expected: int) -> None:
    assert levels.level(priority, seconds) == expected


ENGLISH = (
    ["Summary", "Timeline", "Root Cause", "Corrective Actions", "Lessons Learned"],
    "- **Start**: 2026-01-12 03:12:00", "- **End**: 2026-01-12 03:24:00", "- **Duration**: 12 minutes",
    "- **Impact**: 3 copies stand still (2 × finalize lost_task, 1 × import no_progress); no data lost",
    "- **Criticality**: CRITICAL", "- **03:12**: Alert detected (WorkersDown)", "- **03:16**: Investigation started",
    "- **03:18**: Root cause identified", "- **03:21**: Fix applied (recover_stuck_copies (exit 0, 1 s))",
    "- **03:24**: Service restored", "- [x] Immediate fix applied", "- [ ] a bigger disk", "- watch it",
    "- 2026-01-12 03:19:00 failure: FINALIZE (TIMEOUT), 7 times until 03:20:30",
    "- (not asked: audit trail (DATABASE_UNAVAILABLE))",
)  # fmt: skip
FRENCH = (
    ["Résumé", "Chronologie", "Cause Racine", "Actions Correctives", "Leçons Apprises"],
    "- **Début** : 2026-01-12 03:12:00", "- **Fin** : 2026-01-12 03:24:00", "- **Durée** : 12 minutes",
    "- **Impact** : 3 copies bloquées (2 × finalize lost_task, 1 × import no_progress) ; aucune donnée perdue",
    "- **Criticité** : CRITICAL", "- **03:12** : Alerte détectée (WorkersDown)",
    "- **03:16** : Investigation démarrée", "- **03:18** : Cause racine identifiée",
    "- **03:21** : Correction appliquée (recover_stuck_copies (exit 0, 1 s))", "- **03:24** : Service restauré",
    "- [x] Correction immédiate appliquée", "- [ ] a bigger disk", "- watch it",
    "- 2026-01-12 03:19:00 échec : FINALIZE (TIMEOUT), 7 fois jusqu'à 03:20:30",
    "- (non consulté : piste d'audit (DATABASE_UNAVAILABLE))",
)  # fmt: skip


@pytest.mark.parametrize(("language", "expected"), [("en", ENGLISH), ("fr", FRENCH)])
def test_the_report_is_the_template_with_five_lines_that_are_true(language: str, expected: tuple[object, ...]) -> None:
    found = incident(
        ended_at=at(12), cause="it was full\n## Not one", lessons=["watch it"], actions=["a bigger disk"],
        language=language, stuck_copies={"import no_progress": 1, "finalize lost_task": 2},
        unasked=["audit trail (DATABASE_UNAVAILABLE)"],
    )  # fmt: skip
    found.timeline.insert(-3, Entry(at(7), "failure", "FINALIZE (TIMEOUT)", 7, at(8.5)))
    text = report.markdown(found, START + timedelta(hours=9))
    assert text.startswith("# Incident Report - [2026-01-12-03:12]\n")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == expected[0]
    for line in expected[1:]:
        assert line in text.splitlines(), f"{line}\n{text}"
    # what a person typed opens nothing in the report
    assert "<b>" not in text and "\n## Not" not in text
    # either can be read in the other language
    other = "fr" if language == "en" else "en"
    assert report.markdown(found, START, other) == report.markdown(replace(found, language=other), START) != text


@pytest.mark.parametrize(
    ("language", "lines"),
    [("en", ("- **End**: not yet", "N3 (developers)", "- **--:--**: Service restored")),
     ("fr", ("- **Fin** : en cours", "N3 (développement)", "- **--:--** : Service restauré"))],
)  # fmt: skip
def test_an_incident_that_lasts_says_so(language: str, lines: tuple[str, ...]) -> None:
    text = report.markdown(incident(language=language), START + timedelta(minutes=20))
    assert [line for line in lines if line not in text] == []


def test_a_person_who_tells_the_impact_knows_better() -> None:
    found = incident(impact="two classes wait", stuck_copies={"import no_progress": 1})
    assert "- **Impact**: two classes wait" in report.markdown(found, START).splitlines()
    assert "- **Impact**: to be completed" in report.markdown(incident(), START).splitlines()


@pytest.mark.parametrize(
    ("locale", "language"),
    [("fr_FR.UTF-8", "fr"), ("fr", "fr"), ("FR_CA", "fr"), ("en_GB.UTF-8", "en"), ("C.UTF-8", "en"), ("", "en")],
)
def test_the_language_is_that_of_the_locale(locale: str, language: str) -> None:
    assert language_of(locale) == language


def test_a_report_that_somebody_edited_is_left_as_it_is(tmp_path: Path) -> None:
    book, now = Book(Home(tmp_path)), START + timedelta(hours=1)
    found = incident()
    assert book.write(found, now)
    found.cause = "the disk was full"
    assert book.write(found, now)
    assert "the disk was full" in book.report_file(found).read_text()
    book.report_file(found).write_text("my own words")
    found.lessons = ["watch it"]
    assert not book.write(found, now)
    assert book.report_file(found).read_text() == "my own words"
    read = book.find(found.id)
    assert read.lessons == ["watch it"] and read.timeline == found.timeline
    assert json.loads((tmp_path / "incidents" / f"{found.id}.json").read_text())["level"] == 4
    assert (book.report_file(found).stat().st_mode & 0o777, book.find("latest").id) == (0o600, found.id)
    with pytest.raises(NotFound):
        book.find("../../etc/passwd")


def test_names_say_when_and_what_and_are_never_given_twice(tmp_path: Path) -> None:
    book = Book(Home(tmp_path))
    assert book.name(START, "ImportStuck") == "2026-01-12-03-12-import-stuck"
    assert book.name(START, "Été: ../../x") == "2026-01-12-03-12-ete-x"
    assert book.name(START, "…") == "2026-01-12-03-12-incident"
    first = incident(id=book.name(START, "ImportStuck"))
    book.write(first, START)
    assert book.name(START, "ImportStuck") == "2026-01-12-03-12-import-stuck-2"


def test_commands_are_noted_without_what_a_person_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORRIGO_HOME", str(tmp_path))
    copy = "0197aaaa-bbbb-7ccc-8ddd-eeeeffff0000"
    with journal.noted(["user", "passwd", "jean.dupont"]):
        pass
    assert journal.between(Home(tmp_path), START, datetime.now(UTC)) == []  # no home: nothing is made
    (tmp_path / "incidents").mkdir()
    for words in (
        ["user", "passwd", "jean.dupont"], ["force_unlock_copy", copy, "--reason", "Jean is ill"],
        ["retry_failed_tasks", "--since=24h", "--as", "zoe"], ["intervene", "RetryFinalize", f"copy/{copy}"],
        ["up"], ["incident", "list"], ["doctor", "scenario", "import-stuck"], ["zoe"],
    ):  # fmt: skip
        with journal.noted(words):
            pass
    with pytest.raises(SystemExit), journal.noted(["stuck"]):
        raise SystemExit(9)
    found = journal.between(Home(tmp_path), START, datetime.now(UTC))
    assert [(one.words, one.code) for one in found] == [
        ("user passwd …", 0), (f"force_unlock_copy {copy} --reason …", 0), ("retry_failed_tasks --since --as …", 0),
        (f"intervene RetryFinalize copy/{copy}", 0), ("doctor scenario import-stuck", 0), ("zoe", 0), ("stuck", 9),
    ]  # fmt: skip


def test_redaction_cuts_shapes_secrets_and_names() -> None:
    redact = Redactor(["s3cr3t-value"], ["Jean Dupont", "zoe", "li", "admin", "Été"])
    text = (
        "jean dupont asked zoe (zoe@school.fr); LI and liste; admin; ÉTÉ; pw=S3CR3T-VALUE"
        " postgresql://korrigo:hunter22@db/korrigo Bearer abcdefgh12345678"
        " eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ1In0.c2lnbmF0dXJl"
    )
    cut = redact(text)
    for word in ("jean", "zoe", "s3cr3t", "hunter22", "abcdefgh12345678", "eyJ", "LI ", "ÉTÉ", "school"):
        assert word.casefold() not in cut.casefold(), word
    assert "liste" in cut and "admin" in cut and "@db/korrigo" in cut
