"""The tables that every room has from kit: a room's migration calls a step by its number; a step never changes."""

from __future__ import annotations

from alembic import op

STEP_1 = """
CREATE TABLE streams (
    subject_type text NOT NULL,
    subject_id   text NOT NULL,
    last_seq     bigint NOT NULL,
    updated_at   timestamptz NOT NULL,
    PRIMARY KEY (subject_type, subject_id)
);
CREATE TABLE outbox (
    id           uuid PRIMARY KEY,
    subject_type text NOT NULL,
    subject_id   text NOT NULL,
    source_seq   bigint NOT NULL,
    type         text NOT NULL,
    action       text,
    leaf         bytea NOT NULL,
    leaf_hash    bytea NOT NULL,
    payload      bytea NOT NULL,
    request_id   text NOT NULL,
    traceparent  text NOT NULL,
    txid         bigint NOT NULL DEFAULT (pg_current_xact_id()::text::bigint),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent_at      timestamptz,
    UNIQUE (subject_type, subject_id, source_seq)
);
CREATE INDEX outbox_unsent ON outbox (id) WHERE sent_at IS NULL;
CREATE INDEX outbox_recent ON outbox (created_at);
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;
CREATE TABLE event_texts (
    event_id uuid NOT NULL,
    key      text NOT NULL,
    salt     bytea NOT NULL,
    text     text NOT NULL,
    PRIMARY KEY (event_id, key)
);
CREATE TABLE inbox (
    source       text NOT NULL,
    subject_type text NOT NULL,
    subject_id   text NOT NULL,
    kind         text NOT NULL,
    last_seq     bigint NOT NULL,
    last_error   text,
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, subject_type, subject_id, kind)
);
CREATE INDEX inbox_subject ON inbox (source, subject_id);
CREATE TABLE inbox_looks (
    source       text NOT NULL,
    kind         text NOT NULL,
    looked_at_ms bigint NOT NULL,
    PRIMARY KEY (source, kind)
);
CREATE TABLE jobs (
    id            uuid PRIMARY KEY,
    kind          text NOT NULL,
    subject_id    text NOT NULL,
    payload       jsonb NOT NULL,
    state         text NOT NULL DEFAULT 'READY'
        CHECK (state IN ('READY', 'RUNNING', 'DONE', 'FAILED', 'QUARANTINED', 'CANCELLED')),
    dedupe_key    text UNIQUE,
    attempts      integer NOT NULL DEFAULT 0,
    lost_leases   integer NOT NULL DEFAULT 0,
    postponements integer NOT NULL DEFAULT 0,
    fence         bigint NOT NULL DEFAULT 0,
    worker        text,
    lease_until   timestamptz,
    not_before    timestamptz NOT NULL DEFAULT clock_timestamp(),
    rung_at       timestamptz,
    rings         integer NOT NULL DEFAULT 0,
    progress      jsonb NOT NULL DEFAULT '{}',
    error_reason  text,
    error_message text,
    request_id    text NOT NULL,
    traceparent   text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at    timestamptz,
    heartbeat_at  timestamptz,
    finished_at   timestamptz
);
CREATE INDEX jobs_due ON jobs (not_before) WHERE state = 'READY';
CREATE INDEX jobs_leased ON jobs (lease_until) WHERE state = 'RUNNING';
CREATE INDEX jobs_subject ON jobs (subject_id);
CREATE TABLE blob_refs (
    sha256     text NOT NULL,
    owner_kind text NOT NULL,
    owner_id   text NOT NULL,
    PRIMARY KEY (sha256, owner_kind, owner_id)
);
CREATE INDEX blob_refs_owner ON blob_refs (owner_kind, owner_id);
CREATE TABLE idempotency_keys (
    actor_id    text NOT NULL,
    key         text NOT NULL,
    operation   text NOT NULL,
    fingerprint text NOT NULL,
    status      integer,
    response    jsonb,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (actor_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
CREATE TABLE revoked_sessions (
    session_id text PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE TABLE heartbeats (
    name     text PRIMARY KEY,
    beat_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    facts    jsonb NOT NULL DEFAULT '{}'
);
CREATE FUNCTION ring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('korrigo_' || TG_TABLE_SCHEMA, TG_TABLE_NAME);
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_rings AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION ring();
CREATE TRIGGER jobs_ring AFTER INSERT ON jobs FOR EACH STATEMENT EXECUTE FUNCTION ring();
"""

STEP_2 = """
-- Turned by the front door only, read by every request's cache: read_only, tokens_from (kit.switches).
CREATE TABLE switches (
    name      text PRIMARY KEY,
    value     bigint NOT NULL,
    turned_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""

STEP_3 = """
-- Acts of healing by their uid, so that each is done once (kit.interventions); the reason is in event_texts.
CREATE TABLE interventions (
    uid         text PRIMARY KEY,
    action      text NOT NULL,
    fingerprint text NOT NULL,
    state       text NOT NULL DEFAULT 'RUNNING' CHECK (state IN ('RUNNING', 'SUCCEEDED', 'FAILED')),
    actor_id    uuid NOT NULL,
    approver_id uuid,
    plan        jsonb NOT NULL,
    result      jsonb,
    lease_until timestamptz NOT NULL,
    request_id  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    CHECK ((state = 'RUNNING') = (result IS NULL))
);
"""


def step_1() -> None:
    """Create streams, outbox, inbox, jobs, blob references, idempotency keys, revoked sessions, heartbeats."""
    op.execute(STEP_1)


def step_2() -> None:
    """Create the switches of the whole installation."""
    op.execute(STEP_2)


def step_3() -> None:
    """Create the interventions."""
    op.execute(STEP_3)
