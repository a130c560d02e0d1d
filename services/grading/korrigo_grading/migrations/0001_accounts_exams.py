"""Accounts, their sessions and logins; exams with their schemes."""

from __future__ import annotations

from alembic import op

from korrigo_kit.migrations import kit
from korrigo_kit.outbox import SYSTEM_ACTOR

revision = "0001"
down_revision = None

SQL = """
CREATE TABLE users (
    id                   uuid PRIMARY KEY,
    username             text NOT NULL CHECK (length(username) BETWEEN 1 AND 150),
    -- The user name folded, so that Ada and ada are one account.
    account_key          text NOT NULL UNIQUE,
    email                text CHECK (length(email) <= 254),
    roles                text[] NOT NULL
        CHECK (roles <@ ARRAY['admin', 'scan_operator', 'marker', 'lead_marker', 'student', 'auditor']),
    -- NULL: this account cannot log in.
    password_hash        text,
    is_active            boolean NOT NULL DEFAULT true,
    is_system            boolean NOT NULL DEFAULT false,
    must_change_password boolean NOT NULL DEFAULT false,
    -- Opaque id of a student in ingest; no name crosses (decisions.md, Ownership).
    student_id           uuid,
    last_login           timestamptz,
    created_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    version              bigint NOT NULL DEFAULT 1,
    CHECK (NOT is_system OR (password_hash IS NULL AND roles = '{}'))
);
-- The list of accounts is ordered and paged by the folded name, byte by byte.
CREATE INDEX users_listed ON users (account_key COLLATE "C");
CREATE TABLE sessions (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users,
    address    text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
-- Which sessions of a user live; has this account logged in from this address before.
CREATE INDEX sessions_user ON sessions (user_id, address);
CREATE INDEX sessions_age ON sessions (expires_at);
CREATE TABLE login_attempts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('login', 'password_change')),
    -- SHA-256 of the folded user name: people type passwords into the wrong field.
    account_sha text NOT NULL,
    address     text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX login_attempts_account ON login_attempts (account_sha, kind, at);
CREATE INDEX login_attempts_address ON login_attempts (address, kind, at);
CREATE INDEX login_attempts_age ON login_attempts (at);
CREATE TABLE exams (
    id                  uuid PRIMARY KEY,
    name                text NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    date                date NOT NULL,
    split_mode          text NOT NULL CHECK (split_mode IN ('A3_to_A4', 'A4_single', 'custom')),
    pages_per_booklet   integer NOT NULL CHECK (pages_per_booklet BETWEEN 0 AND 500),
    split_horizontal    boolean NOT NULL,
    grading_structure   jsonb NOT NULL,
    max_score           numeric(8,2) NOT NULL CHECK (max_score > 0),
    -- Grows with grading_structure and max_score, so that a score can say which scheme it was given under.
    scheme_version      bigint NOT NULL DEFAULT 1,
    auto_validate       boolean NOT NULL,
    corrector_ids       uuid[] NOT NULL DEFAULT '{}',
    results_released_at timestamptz,
    created_by          uuid NOT NULL REFERENCES users,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at          timestamptz,
    version             bigint NOT NULL DEFAULT 1
);
-- The list, newest first, and the exams of a marker.
CREATE INDEX exams_listed ON exams (created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX exams_correctors ON exams USING gin (corrector_ids);
"""


def upgrade() -> None:
    """Create the tables and the account that acts when no person does."""
    kit.step_1()
    op.execute(SQL)
    op.execute(
        "INSERT INTO users (id, username, account_key, roles, is_system, is_active)"
        f" VALUES ('{SYSTEM_ACTOR}', 'system', 'system', '{{}}', true, false)"
    )


def downgrade() -> None:
    """There is no way down from the first step."""
    raise NotImplementedError
