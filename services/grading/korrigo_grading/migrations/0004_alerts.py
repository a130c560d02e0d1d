"""What Alertmanager tells: groups of alerts, one row for each time that a group fired, and its alerts."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

SQL = """
-- One episode of a group: from the first of its alerts that fired until none of them fires any more.
CREATE TABLE alert_groups (
    id          uuid PRIMARY KEY,
    -- Alertmanager's own name of the group; the same for every episode.
    group_key   text NOT NULL CHECK (length(group_key) <= 2000),
    labels      jsonb NOT NULL,
    started_at  timestamptz NOT NULL,
    -- NULL: it fires.
    ended_at    timestamptz,
    heard_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Alerts beyond the limit of a group, which are counted and not kept.
    left_out    integer NOT NULL DEFAULT 0
);
CREATE INDEX alert_groups_listed ON alert_groups (started_at DESC, id DESC);
CREATE INDEX alert_groups_key ON alert_groups (group_key, started_at);
CREATE TABLE alerts (
    group_id          uuid NOT NULL REFERENCES alert_groups ON DELETE CASCADE,
    fingerprint       text NOT NULL CHECK (length(fingerprint) <= 64),
    started_at        timestamptz NOT NULL,
    ended_at          timestamptz,
    labels            jsonb NOT NULL,
    annotations       jsonb NOT NULL,
    heard_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    end_heard_at      timestamptz,
    PRIMARY KEY (group_id, fingerprint, started_at)
);
"""


def upgrade() -> None:
    """Create the tables."""
    op.execute(SQL)


def downgrade() -> None:
    """There is no way down: an older release does not look at the tables."""
    raise NotImplementedError
