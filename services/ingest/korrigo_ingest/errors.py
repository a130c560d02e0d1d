"""Why a PDF is not imported: the closed list of reasons, and which of them a new attempt may cure."""

from __future__ import annotations

from korrigo_kit.errors import Bug, Invalid, KorrigoError, Timeout

# The document's own fault: the scan ends REJECTED (decisions.md, HTTP).
REFUSALS = frozenset(
    {
        "FILE_TOO_LARGE",
        "EMPTY_FILE",
        "INVALID_MIME_TYPE",
        "EMPTY_PDF",
        "TOO_MANY_PAGES",
        "PAGE_TOO_LARGE",
        "CORRUPTED_PDF",
        "ENCRYPTED",
        "JAVASCRIPT",
        "ACTIVE_CONTENT",
        "RESOURCE_LIMIT",
    }
)


def of_engine(reason: str, message: str, detail: str = "") -> KorrigoError:
    """Class an engine's failure: a refusal, out of time, or a bug.

    A document that needs more wall time than its pages are worth breaks a limit like one that needs more memory,
    so the reason is the same; it is tried again, because a loaded machine may do better later. TIMEOUT is left to
    the whole job.
    """
    if reason in REFUSALS:
        return Invalid(reason, message, detail=detail)
    if reason == "TIMEOUT":
        return Timeout("RESOURCE_LIMIT", message, detail=detail)
    return Bug(reason, message, detail=detail)


def ocr_error_type(reason: str) -> str:
    """Give the `error_type` under which a failed import is counted (decisions.md, HTTP)."""
    if reason in ("TIMEOUT", "RESOURCE_LIMIT"):
        return "timeout"
    return "invalid_pdf" if reason in REFUSALS else "unknown"
