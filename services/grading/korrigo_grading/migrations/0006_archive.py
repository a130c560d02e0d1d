"""Archived exams: their rows stay, their marks and texts do not (decisions.md, Deletion)."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

SQL = """
ALTER TABLE exams ADD COLUMN archived_at timestamptz, ADD COLUMN archive_sha256 text;
-- A graded copy has its mark as long as it is there for anybody; an archived one is a tombstone.
-- widens: every row that obeyed the check before obeys copies_graded
DO $$
DECLARE found name;
BEGIN
    FOR found IN SELECT conname FROM pg_constraint WHERE conrelid = 'copies'::regclass AND contype = 'c'
        AND pg_get_constraintdef(oid) LIKE '%graded_at IS NOT NULL%'
    LOOP
        EXECUTE format('ALTER TABLE copies DROP CONSTRAINT %I', found);
    END LOOP;
END $$;
ALTER TABLE copies ADD CONSTRAINT copies_graded CHECK (
    status <> 'GRADED' OR deleted_at IS NOT NULL OR (graded_at IS NOT NULL AND final_score IS NOT NULL));
ALTER TABLE finalisations ALTER COLUMN score DROP NOT NULL;
"""


def upgrade() -> None:
    """Add the columns and loosen what a tombstone need not have; an older release never reads one."""
    op.execute(SQL)


def downgrade() -> None:
    """There is no way down: what was archived is gone."""
    raise NotImplementedError
