"""HTTP face of grading: one module per kind of resource, each with its router `api`."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter

from korrigo_grading.rest import accounts, annotations, copies, exams, finalisation, locks, scores


def routers() -> Sequence[APIRouter]:
    """Return the routers, in the order of the documentation."""
    return (accounts.api, exams.api, copies.api, locks.api, annotations.api, scores.api, finalisation.api)
