"""HTTP face of grading: one module per kind of resource, each with its router `api`."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter

from korrigo_grading.rest import accounts, alerts, copies, exams, finalisation, locks, operations, scores
from korrigo_grading.rest.annotations import api as annotations_api


def routers() -> Sequence[APIRouter]:
    """Return the routers, in the order of the documentation."""
    return (
        accounts.api,
        exams.api,
        copies.api,
        locks.api,
        annotations_api,
        scores.api,
        finalisation.api,
        operations.api,
        alerts.api,
    )
