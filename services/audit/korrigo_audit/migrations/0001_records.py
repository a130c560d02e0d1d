"""Records of every room's events, and the number that the API gives each within its stream."""

from __future__ import annotations

from alembic import op

from korrigo_kit.migrations import kit

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE records (
    subject_type text NOT NULL,
    subject_id   text NOT NULL,
    source       text NOT NULL,
    source_seq   bigint NOT NULL CHECK (source_seq > 0),
    seq          bigint NOT NULL CHECK (seq > 0),
    id           uuid NOT NULL,
    type         text NOT NULL,
    action       text,
    actor_id     text NOT NULL,
    at           text NOT NULL,
    happened_at  timestamptz NOT NULL,
    metadata     jsonb NOT NULL,
    request_id   text NOT NULL,
    leaf         bytea NOT NULL,
    leaf_hash    bytea NOT NULL,
    appended_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (subject_type, subject_id, source, source_seq),
    UNIQUE (subject_type, subject_id, seq)
);
COMMENT ON TABLE records IS 'append-only';
CREATE UNIQUE INDEX records_id ON records (id);
-- The list of all events, newest first, by action.
CREATE INDEX records_happened ON records (happened_at, id) WHERE action IS NOT NULL;
CREATE INDEX records_action ON records (action, happened_at, id) WHERE action IS NOT NULL;
CREATE TABLE record_heads (
    subject_type text NOT NULL,
    subject_id   text NOT NULL,
    last_seq     bigint NOT NULL,
    PRIMARY KEY (subject_type, subject_id)
);
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit records are append-only';
END $$;
CREATE TRIGGER records_keep BEFORE UPDATE OR DELETE ON records
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER records_keep_all BEFORE TRUNCATE ON records
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    """Create the tables."""
    kit.step_1()
    op.execute(SQL)


def downgrade() -> None:
    """There is no way down from the first step."""
    raise NotImplementedError
