"""Copies over their whole life: pages, locks, annotations, scores, finalisations.

The shapes are those of decisions.md ("Shapes that hold from the first migration"): assemblies, page ids, markings,
revisions, deletion marks and tombstones are here from the start, so that later work adds and never rewrites.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = """
CREATE TABLE copies (
    id                    uuid PRIMARY KEY,
    exam_id               uuid NOT NULL REFERENCES exams,
    anonymous_id          text NOT NULL UNIQUE CHECK (length(anonymous_id) BETWEEN 1 AND 50),
    status                text NOT NULL DEFAULT 'STAGING' CHECK (status IN
        ('STAGING', 'READY', 'LOCKED', 'GRADING_IN_PROGRESS', 'GRADING_FAILED', 'GRADED')),
    version               bigint NOT NULL DEFAULT 1,
    revision              integer NOT NULL DEFAULT 1 CHECK (revision > 0),
    -- 0 until ingest told the pages; a higher assembly replaces a lower one.
    assembly              integer NOT NULL DEFAULT 0 CHECK (assembly >= 0),
    source_sha256         text,
    source_size           bigint,
    assigned_corrector_id uuid,
    dispatch_run_id       uuid,
    assigned_at           timestamptz,
    created_by            uuid NOT NULL,
    created_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    validated_at          timestamptz,
    -- Holder of the lock, or who held it when the copy was finalised.
    locked_at             timestamptz,
    locked_by             uuid,
    graded_at             timestamptz,
    grading_retries       integer NOT NULL DEFAULT 0 CHECK (grading_retries >= 0),
    grading_error_message text,
    final_score           numeric(8,2),
    deleted_at            timestamptz,
    -- Grows with every grant of the lock; what was written under a lower one is history.
    fence                 bigint NOT NULL DEFAULT 0,
    CHECK (status <> 'GRADED' OR (graded_at IS NOT NULL AND final_score IS NOT NULL)),
    CHECK (status = 'STAGING' OR assembly > 0)
);
-- The list of an exam's copies, oldest first, and the copies of a status (gauges, sweeps).
CREATE INDEX copies_listed ON copies (exam_id, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX copies_status ON copies (status, updated_at) WHERE deleted_at IS NULL;

CREATE TABLE copy_pages (
    copy_id               uuid NOT NULL REFERENCES copies,
    page_id               uuid NOT NULL,
    page_index            integer NOT NULL CHECK (page_index >= 0),
    width                 double precision NOT NULL CHECK (width > 0 AND width < 'Infinity'),
    height                double precision NOT NULL CHECK (height > 0 AND height < 'Infinity'),
    is_masked             boolean NOT NULL,
    picture_sha256        text NOT NULL,
    masked_picture_sha256 text NOT NULL,
    scan_id               uuid NOT NULL,
    assembly              integer NOT NULL,
    PRIMARY KEY (copy_id, page_id),
    UNIQUE (copy_id, page_index)
);
CREATE TABLE copy_booklets (
    copy_id    uuid NOT NULL REFERENCES copies,
    booklet_id uuid NOT NULL,
    position   integer NOT NULL CHECK (position >= 0),
    start_page integer NOT NULL CHECK (start_page > 0),
    end_page   integer NOT NULL CHECK (end_page >= start_page),
    page_ids   uuid[] NOT NULL,
    PRIMARY KEY (copy_id, booklet_id),
    UNIQUE (copy_id, position)
);
CREATE TABLE copy_anomalies (
    copy_id     uuid NOT NULL REFERENCES copies,
    position    integer NOT NULL,
    code        text NOT NULL,
    scan_page   integer NOT NULL,
    is_resolved boolean NOT NULL,
    PRIMARY KEY (copy_id, position)
);

-- One lock per copy: a lease with a fence. No row = no lock.
CREATE TABLE copy_locks (
    copy_id      uuid PRIMARY KEY REFERENCES copies,
    -- Which marking the holder writes; taken from here, never from a path.
    marking      smallint NOT NULL DEFAULT 1 CHECK (marking > 0),
    owner_id     uuid NOT NULL,
    client_id    text CHECK (client_id ~ '^[A-Za-z0-9._:-]{1,64}$'),
    session_id   text NOT NULL,
    token_hash   text NOT NULL,
    token_prefix text NOT NULL,
    fence        bigint NOT NULL,
    ttl_seconds  integer NOT NULL CHECK (ttl_seconds BETWEEN 1 AND 3600),
    acquired_at  timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
);
-- The sweep of leases that ended.
CREATE INDEX copy_locks_ended ON copy_locks (expires_at);

-- Edges may stick out by the rounding of one addition; more was refused or clamped before.
CREATE TABLE annotations (
    copy_id     uuid NOT NULL REFERENCES copies,
    id          uuid NOT NULL,
    marking     smallint NOT NULL CHECK (marking > 0),
    page_id     uuid NOT NULL,
    x           double precision NOT NULL CHECK (x >= 0 AND x <= 1),
    y           double precision NOT NULL CHECK (y >= 0 AND y <= 1),
    w           double precision NOT NULL CHECK (w > 0 AND w <= 1 AND x + w <= 1 + 1e-9),
    h           double precision NOT NULL CHECK (h > 0 AND h <= 1 AND y + h <= 1 + 1e-9),
    type        text NOT NULL CHECK (type IN ('COMMENT', 'HIGHLIGHT', 'ERROR', 'BONUS', 'TEXT', 'INK', 'STAMP')),
    content     text NOT NULL DEFAULT '',
    score_delta numeric(8,2),
    question_id text,
    strokes     jsonb,
    -- Lock under which the version was written.
    fence       bigint NOT NULL,
    created_by  uuid NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    version     integer NOT NULL DEFAULT 1,
    deleted_at  timestamptz,
    PRIMARY KEY (copy_id, id)
);
-- The list of a copy's annotations in the order of their making.
CREATE INDEX annotations_listed ON annotations (copy_id, marking, created_at, id) WHERE deleted_at IS NULL;

CREATE TABLE scores (
    copy_id      uuid NOT NULL REFERENCES copies,
    marking      smallint NOT NULL CHECK (marking > 0),
    -- {question id: whole hundredths | "NT"}; a question that is not marked is not in it.
    scores       jsonb NOT NULL CHECK (jsonb_typeof(scores) = 'object'),
    appreciation text,
    fence        bigint NOT NULL,
    version      integer NOT NULL DEFAULT 1,
    updated_by   uuid NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (copy_id, marking)
);

CREATE TABLE finalisations (
    id              uuid PRIMARY KEY,
    copy_id         uuid NOT NULL REFERENCES copies,
    revision        integer NOT NULL CHECK (revision > 0),
    request         integer NOT NULL CHECK (request > 0),
    marking         smallint NOT NULL DEFAULT 1,
    state           text NOT NULL DEFAULT 'REQUESTED' CHECK (state IN ('REQUESTED', 'SUCCEEDED', 'FAILED')),
    manifest_sha256 text NOT NULL,
    score           numeric(8,2) NOT NULL,
    max_score       numeric(8,2) NOT NULL,
    marker_id       uuid NOT NULL,
    requested_by    uuid NOT NULL,
    requested_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts        integer NOT NULL DEFAULT 0,
    error_reason    text,
    final_sha256    text,
    final_size      bigint,
    pages           integer,
    duration_ms     bigint,
    finished_at     timestamptz,
    UNIQUE (copy_id, revision, request),
    CHECK (state <> 'SUCCEEDED' OR (final_sha256 IS NOT NULL AND final_size > 0 AND pages > 0))
);
-- Exactly one success of a copy's revision, whatever is delivered twice.
CREATE UNIQUE INDEX finalisations_success ON finalisations (copy_id, revision) WHERE state = 'SUCCEEDED';

-- No way round the events: a commit that changes a status without telling it is refused. The newest event of the
-- copy is this transaction's when it wrote one, because the stream's head stays locked until the commit.
CREATE FUNCTION require_status_event() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF (SELECT o.txid FROM outbox o WHERE o.subject_type = 'copy' AND o.subject_id = NEW.id::text
        ORDER BY o.source_seq DESC LIMIT 1) IS DISTINCT FROM pg_current_xact_id()::text::bigint THEN
        RAISE EXCEPTION 'copy % went from % to % without an event', NEW.id, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER copies_tell AFTER UPDATE ON copies DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION require_status_event();
"""


def upgrade() -> None:
    """Create the tables and the trigger that keeps statuses and events together."""
    op.execute(SQL)


def downgrade() -> None:
    """There is no way down: copies are never dropped."""
    raise NotImplementedError
