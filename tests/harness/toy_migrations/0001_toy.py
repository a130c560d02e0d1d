"""Tables of the toy room."""

from __future__ import annotations

from alembic import op

from korrigo_kit.migrations import kit

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create kit's tables and three of its own."""
    kit.step_1()
    op.execute(
        "CREATE TABLE done (job_id uuid PRIMARY KEY); CREATE TABLE failed (job_id uuid, reason text, is_final boolean);"
        "CREATE TABLE heard (event_id uuid PRIMARY KEY, source_seq bigint, n bigserial)"
    )
