"""Switches of the whole installation, as this room reads them."""

from __future__ import annotations

from korrigo_kit.migrations import kit

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    kit.step_2()


def downgrade() -> None:
    """There is no way down: an older release does not look at the table."""
    raise NotImplementedError
