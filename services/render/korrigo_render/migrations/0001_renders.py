"""What was asked of render, and what came of it."""

from __future__ import annotations

from alembic import op

from korrigo_kit.migrations import kit

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE renders (
    copy_id         uuid NOT NULL,
    revision        integer NOT NULL CHECK (revision > 0),
    request         integer NOT NULL CHECK (request > 0),
    manifest_sha256 text NOT NULL,
    job_id          uuid NOT NULL,
    state           text NOT NULL DEFAULT 'REQUESTED' CHECK (state IN ('REQUESTED', 'RENDERED', 'FAILED')),
    reason          text,
    final_sha256    text,
    final_size      bigint,
    pages           integer,
    source_pages    integer,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at     timestamptz,
    PRIMARY KEY (copy_id, revision, request),
    CHECK ((state = 'RENDERED') = (final_sha256 IS NOT NULL))
);
CREATE INDEX renders_state ON renders (state) WHERE state <> 'RENDERED';
"""


def upgrade() -> None:
    """Create the table."""
    kit.step_1()
    op.execute(SQL)


def downgrade() -> None:
    """There is no way down from the first step."""
    raise NotImplementedError
