"""Open an uploaded PDF for its structure, or refuse it by a reason of the closed list; first step of every engine.

qpdf (pikepdf) is the one parser of structure. Its decoders are bounded here, once per process, so that no stream
can be blown up: a scan's content streams are a few hundred bytes, a heavy vector page has some megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pikepdf
from pikepdf import settings

from korrigo_kit.sandbox import EngineError

DECODED_STREAM_BYTES = 64 << 20
"""No single stream may decode to more (images are never decoded by qpdf here)."""

HEADER_WINDOW = 1024
"""A PDF header may stand anywhere in the first 1024 bytes (what every reader accepts)."""

settings.set_qpdf_limits(
    flate_max_memory=DECODED_STREAM_BYTES,
    run_length_max_memory=DECODED_STREAM_BYTES,
    png_max_memory=DECODED_STREAM_BYTES,
    tiff_max_memory=DECODED_STREAM_BYTES,
    dct_max_memory=DECODED_STREAM_BYTES,
    doc_max_warnings=200_000,
)


class Remarks:
    """What qpdf had to mend so far; its own list empties itself when read."""

    def __init__(self, pdf: pikepdf.Pdf) -> None:
        self._pdf = pdf
        self.count = 0

    def take(self) -> int:
        """Count the remarks made since the last call."""
        fresh = len(self._pdf.get_warnings())
        self.count += fresh
        return fresh


def is_over_limit(error: Exception) -> bool:
    """Tell whether a qpdf error is one of the bounds above (flate bombs), rather than damage."""
    return "memory limit" in str(error) or "too large" in str(error).lower()


def require_pdf(path: Path) -> None:
    """Look at size and header only. Raises EngineError EMPTY_FILE, INVALID_MIME_TYPE."""
    with path.open("rb") as stream:
        head = stream.read(HEADER_WINDOW)
    if not head:
        raise EngineError("EMPTY_FILE", "the file has no bytes")
    if b"%PDF-" not in head:
        raise EngineError("INVALID_MIME_TYPE", "the file does not begin like a PDF")


@contextmanager
def opened(path: Path) -> Iterator[pikepdf.Pdf]:
    """Open a PDF, with the empty password when it is encrypted.

    Raises EngineError EMPTY_FILE, INVALID_MIME_TYPE, ENCRYPTED, CORRUPTED_PDF, RESOURCE_LIMIT; errors of qpdf inside
    the block become CORRUPTED_PDF too, so that no parser error leaves the engine without a name.
    """
    require_pdf(path)
    try:
        with pikepdf.open(path, suppress_warnings=True) as pdf:
            yield pdf
    except EngineError:
        raise
    except pikepdf.PasswordError as error:
        raise EngineError("ENCRYPTED", "the PDF asks for a password") from error
    except (MemoryError, RecursionError) as error:
        raise EngineError("RESOURCE_LIMIT", f"the PDF needs too much: {type(error).__name__}") from error
    except (pikepdf.PdfError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise EngineError(_reason(error), f"the PDF cannot be read: {type(error).__name__}: {error!s:.200}") from error


def _reason(error: Exception) -> str:
    if is_over_limit(error):
        return "RESOURCE_LIMIT"
    return "EMPTY_PDF" if "no pages found" in str(error) else "CORRUPTED_PDF"


def page_objects(pdf: pikepdf.Pdf) -> list[pikepdf.Dictionary]:
    """List the page dictionaries in order; qpdf has filled in what pages inherit."""
    return [page.obj for page in pdf.pages]
