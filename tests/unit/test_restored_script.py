"""What a restore leaves out of a script of pg_restore, and that it changes nobody's rows."""

from __future__ import annotations

from korrigo.backup.tables import understood

HEADER = [
    b"SET statement_timeout = 0;\n",
    b"SET transaction_timeout = 0;\n",
    b"CREATE TABLE a.t (\n",
    b"    x text\n",
    b");\n",
    b"ALTER TABLE ONLY a.t ALTER COLUMN x SET (pg_attver=31148832);\n",
    b"ALTER TABLE ONLY a.t ALTER COLUMN x SET DEFAULT now();\n",
]
ROWS = [
    b"COPY a.t (x) FROM stdin;\n",
    b"SET transaction_timeout = 0;\n",
    b"ALTER TABLE ONLY a.t ALTER COLUMN x SET (pg_attver=31148832);\n",
    b"\\.\n",
]


def test_what_an_older_server_does_not_know_is_left_out() -> None:
    assert list(understood(HEADER)) == [HEADER[0], *HEADER[2:5], HEADER[6]]


def test_rows_that_look_like_it_stay() -> None:
    assert list(understood(ROWS)) == ROWS
    assert list(understood([*HEADER, *ROWS]))[-4:] == ROWS
