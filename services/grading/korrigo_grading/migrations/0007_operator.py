"""The account in whose name stuck work is healed without a person: told apart from what the rooms do by themselves."""

from __future__ import annotations

from alembic import op

from korrigo_kit.outbox import OPERATOR_ACTOR

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the account; somebody may be called operator already, and keeps his name."""
    for name in ("operator", "korrigo-operator"):
        op.execute(
            "INSERT INTO users (id, username, account_key, roles, is_system, is_active)"
            f" VALUES ('{OPERATOR_ACTOR}', '{name}', '{name}', '{{}}', true, false) ON CONFLICT DO NOTHING"
        )


def downgrade() -> None:
    """There is no way down: events name the account."""
    raise NotImplementedError
