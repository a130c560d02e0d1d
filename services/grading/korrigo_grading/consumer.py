"""What grading follows of the other rooms: copies as ingest makes them, final PDFs as render makes them."""

from __future__ import annotations

from collections.abc import Sequence

from korrigo_grading.flows import finalize, intake
from korrigo_kit.inbox import Subscription
from korrigo_kit.room import Runtime


def subscriptions(rt: Runtime) -> Sequence[Subscription]:
    """Follow ingest and render, both in order."""
    max_attempts = rt.settings.jobs.max_attempts
    return (
        Subscription(
            source="ingest",
            handlers={
                "copy_staged": intake.on_copy_staged,
                "copy_assembled": intake.on_copy_assembled,
                "copy_withdrawn": intake.on_copy_withdrawn,
            },
        ),
        Subscription(
            source="render",
            handlers={
                "rendered": finalize.on_rendered,
                "render_failed": lambda tx, event: finalize.on_failed(tx, event, max_attempts),
            },
        ),
    )
