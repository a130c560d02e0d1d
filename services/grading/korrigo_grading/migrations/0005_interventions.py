"""Acts of healing, each done once."""

from __future__ import annotations

from korrigo_kit.migrations import kit

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table."""
    kit.step_3()


def downgrade() -> None:
    """There is no way down: an older release does not look at the table."""
    raise NotImplementedError
