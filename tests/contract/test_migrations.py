"""Migrations only add, so that a release runs on the schema of the one after it (reliability.md 10)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "services/kit/korrigo_kit/migrations/kit.py"
FILES = [*sorted(ROOT.glob("services/*/korrigo_*/migrations/[0-9]*_*.py")), KIT]
# What code that does not know of it would stumble over. A step that takes away what no release in use needs any more
# says so in a comment of the file: "contract: since RELEASE nobody reads TABLE.COLUMN" (or writes it otherwise). One
# that puts a weaker rule in the place of another: "widens: every row that obeyed the check before obeys NAME".
SHRINKS = re.compile(
    r"DROP\s+(TABLE|COLUMN|VIEW|TYPE|FUNCTION)|\bRENAME\b|ALTER\s+COLUMN\s+\w+\s+(SET\s+NOT\s+NULL|(SET\s+DATA\s+)?TYPE"
    r"|DROP\s+DEFAULT)|ADD\s+COLUMN(?![^,;]*\bDEFAULT\b)[^,;]*\bNOT\s+NULL|ADD\s+CONSTRAINT"
    r"|op\.(drop_\w+|rename_\w+|alter_column)",
    re.IGNORECASE,
)
DECLARED = re.compile(
    r"contract: since \S+ nobody (reads|writes) \S+|widens: every row that obeyed the check before obeys \w+"
)


def _stumbles(text: str) -> list[str]:
    return [] if DECLARED.search(text) else [found.group(0) for found in SHRINKS.finditer(text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_a_migration_only_adds(path: Path) -> None:
    assert _stumbles(path.read_text()) == []


@pytest.mark.parametrize(
    ("statement", "is_fine"),
    [
        ("ALTER TABLE copies ADD COLUMN seat text", True),
        ("ALTER TABLE copies ADD COLUMN seat integer NOT NULL DEFAULT 0, ADD COLUMN room text", True),
        ("ALTER TABLE copies ADD COLUMN seat integer NOT NULL", False),
        ("ALTER TABLE copies ADD COLUMN a int DEFAULT 0, ADD COLUMN seat integer NOT NULL", False),
        ("ALTER TABLE copies DROP COLUMN seat", False),
        ("alter table copies rename column seat to place", False),
        ("ALTER TABLE copies ALTER COLUMN seat SET NOT NULL", False),
        ("ALTER TABLE copies ALTER COLUMN seat TYPE bigint", False),
        ("ALTER TABLE copies ADD CONSTRAINT seats CHECK (seat > 0) NOT VALID", False),
        ("DROP TABLE orphan_candidates", False),
        ('op.drop_column("copies", "seat")', False),
        ("-- widens: every row that obeyed the check before obeys s\nALTER TABLE c ADD CONSTRAINT s CHECK (t)", True),
        ("-- contract: since 0.3.0 nobody reads copies.seat\nALTER TABLE copies DROP COLUMN seat", True),
    ],
)
def test_what_only_adds(statement: str, is_fine: bool) -> None:
    assert (_stumbles(statement) == []) is is_fine
