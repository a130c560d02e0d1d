"""Blobs that nobody named when the orphan sweep looked last."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

SQL = """
-- Removed only when a second look, a day later by this clock, finds them unnamed still (reliability.md 7).
CREATE TABLE orphan_candidates (
    sha256        text PRIMARY KEY,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


def upgrade() -> None:
    """Create the table."""
    op.execute(SQL)


def downgrade() -> None:
    """There is no way down: an older release does not look at the table."""
    raise NotImplementedError
