"""Scans, the copies staged from them, their pages and anomalies; what ingest knows of exams and copies' access."""

from __future__ import annotations

from alembic import op

from korrigo_kit.migrations import kit

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE scans (
    id                uuid PRIMARY KEY,
    exam_id           uuid NOT NULL,
    state             text NOT NULL DEFAULT 'RECEIVED'
        CHECK (state IN ('RECEIVED', 'RUNNING', 'NEEDS_REVIEW', 'DONE', 'FAILED', 'REJECTED')),
    -- The name the client gave: may hold a person's name, so admins only.
    filename          text NOT NULL,
    sha256            text NOT NULL,
    size              bigint NOT NULL CHECK (size >= 0),
    split_mode        text NOT NULL,
    pages_per_booklet integer NOT NULL,
    split_horizontal  boolean NOT NULL,
    pages             integer NOT NULL DEFAULT 0,
    half_pages        integer NOT NULL DEFAULT 0,
    discarded         integer NOT NULL DEFAULT 0,
    is_repaired       boolean NOT NULL DEFAULT false,
    uploaded_by       uuid NOT NULL,
    job_id            uuid NOT NULL,
    error_reason      text,
    error_message     text,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at       timestamptz,
    CHECK ((state IN ('FAILED', 'REJECTED')) = (error_reason IS NOT NULL))
);
-- Has this exam seen these bytes before?
CREATE INDEX scans_bytes ON scans (exam_id, sha256);
CREATE INDEX scans_open ON scans (state) WHERE state IN ('RECEIVED', 'RUNNING');
CREATE TABLE scan_copies (
    copy_id       uuid PRIMARY KEY,
    scan_id       uuid NOT NULL REFERENCES scans,
    position      integer NOT NULL,
    anonymous_id  text NOT NULL UNIQUE,
    assembly      integer NOT NULL DEFAULT 0,
    source_sha256 text,
    UNIQUE (scan_id, position)
);
CREATE TABLE pages (
    page_id               uuid PRIMARY KEY,
    scan_id               uuid NOT NULL REFERENCES scans,
    copy_id               uuid NOT NULL REFERENCES scan_copies,
    booklet_id            uuid NOT NULL,
    copy_index            integer NOT NULL CHECK (copy_index >= 0),
    scan_page             integer NOT NULL CHECK (scan_page >= 0),
    side                  text NOT NULL CHECK (side IN ('whole', 'left', 'right', 'top', 'bottom')),
    width                 double precision NOT NULL CHECK (width > 0),
    height                double precision NOT NULL CHECK (height > 0),
    is_masked             boolean NOT NULL,
    is_blank              boolean NOT NULL,
    mime                  text,
    picture_sha256        text,
    masked_picture_sha256 text,
    replaces              uuid,
    -- A half page lies in one place only: conservation is a constraint, not a hope.
    UNIQUE (scan_id, scan_page, side),
    UNIQUE (copy_id, copy_index)
);
CREATE TABLE anomalies (
    id          uuid PRIMARY KEY,
    scan_id     uuid NOT NULL REFERENCES scans,
    -- NULL: about the whole scan, so it touches all of its copies.
    copy_id     uuid REFERENCES scan_copies,
    code        text NOT NULL,
    scan_page   integer,
    detail      jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at timestamptz
);
CREATE INDEX anomalies_scan ON anomalies (scan_id);
-- Read models, fed by grading's events: the last one says everything.
CREATE TABLE exams (
    exam_id           uuid PRIMARY KEY,
    split_mode        text NOT NULL,
    pages_per_booklet integer NOT NULL,
    split_horizontal  boolean NOT NULL,
    is_deleted        boolean NOT NULL,
    version           bigint NOT NULL,
    corrector_ids     uuid[] NOT NULL
);
CREATE TABLE copy_access (
    copy_id               uuid PRIMARY KEY,
    exam_id               uuid NOT NULL,
    status                text NOT NULL,
    assigned_corrector_id uuid
);
"""


def upgrade() -> None:
    """Create the tables."""
    kit.step_1()
    op.execute(SQL)


def downgrade() -> None:
    """There is no way down from the first step."""
    raise NotImplementedError
