"""How a failure of the engine becomes one of `kit.errors`: the class decides whether render tries again."""

from __future__ import annotations

from korrigo_kit.errors import Bug, Invalid, KorrigoError, Timeout

# The same input fails the same way: trying again would only delay the answer.
PERMANENT = frozenset(
    {
        "ANNOTATION_OUT_OF_PAGE",
        "MANIFEST_INVALID",
        "MISSING_PAGE",
        "SOURCE_CHANGED",
        "SOURCE_UNREADABLE",
        "UNEXPECTED_PAGE",
    }
)


def of_engine(reason: str, message: str, detail: str = "") -> KorrigoError:
    """Class an engine's failure: permanent, out of time or memory, or a bug (both tried again)."""
    if reason in PERMANENT:
        return Invalid(reason, message, detail=detail)
    if reason in ("TIMEOUT", "RESOURCE_LIMIT"):
        return Timeout(reason, message, detail=detail)
    return Bug(reason, message, detail=detail)
