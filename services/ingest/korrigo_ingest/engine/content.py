"""Read what a page's content streams use and draw; for cutting (which resources a page needs) and for the proof.

Content is decoded through qpdf, within the bounds of `document`. Damaged Flate data give what decodes before the
damage, as viewers show it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import pikepdf

from korrigo_ingest.engine.document import DECODED_STREAM_BYTES, Remarks, is_over_limit
from korrigo_kit.sandbox import EngineError

_NAME = re.compile(rb"/([^\x00\t\n\f\r ()<>\[\]{}/%]+)")
_ESCAPE = re.compile(rb"#([0-9A-Fa-f]{2})")


def content_streams(page: pikepdf.Dictionary) -> list[pikepdf.Stream]:
    """List the content streams of a page in order; whatever is not a stream is nothing."""
    contents = page.get("/Contents")
    if isinstance(contents, pikepdf.Stream):
        return [contents]
    if isinstance(contents, pikepdf.Array):
        return [item for item in contents.as_list() if isinstance(item, pikepdf.Stream)]
    return []


def decoded(stream: pikepdf.Stream) -> tuple[bytes, bool]:
    """Decode a stream that is not an image: its bytes, and whether they are whole.

    Raises EngineError RESOURCE_LIMIT for a stream over the bound of `document`.
    """
    try:
        return stream.read_bytes(), True
    except pikepdf.PdfError as error:
        if is_over_limit(error):
            message = f"a stream decodes to more than {DECODED_STREAM_BYTES} bytes"
            raise EngineError("RESOURCE_LIMIT", message) from error
        return _partial(stream), False


def _partial(stream: pikepdf.Stream) -> bytes:
    """Give what decodes of a damaged stream; only plain Flate can be taken in part.

    A stream that says Flate and is plain text is taken as text, which is how viewers show it.
    """
    values = stream.stream_dict
    if str(values.get("/Filter", "")) not in {"/FlateDecode", "/Fl"} or "/DecodeParms" in values:
        return b""
    decoder = zlib.decompressobj()
    data = stream.read_raw_bytes()
    if data.isascii() and b"\x00" not in data:
        return data
    found = bytearray()
    try:
        for start in range(0, len(data), 1024):
            found += decoder.decompress(data[start : start + 1024], DECODED_STREAM_BYTES - len(found))
            if len(found) >= DECODED_STREAM_BYTES:
                break
    except zlib.error:
        pass
    return bytes(found)


def names_in(content: bytes) -> set[str]:
    """List every name that stands in a content stream: a superset of the resources it uses."""
    return {"/" + _ESCAPE.sub(_unescape, raw).decode("utf-8", "surrogateescape") for raw in set(_NAME.findall(content))}


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match.group(1), 16)])


def page_names(page: pikepdf.Dictionary) -> set[str]:
    """List the names in a page's content, those of the forms that use the page's resources included."""
    names: set[str] = set()
    for stream in content_streams(page):
        names |= names_in(decoded(stream)[0])
    resources = page.get("/Resources")
    forms = resources.get("/XObject") if isinstance(resources, pikepdf.Dictionary) else None
    return names | _names_of_bare_forms(forms, names) if isinstance(forms, pikepdf.Dictionary) else names


def _names_of_bare_forms(forms: pikepdf.Dictionary, names: set[str]) -> set[str]:
    """Follow forms without resources of their own: they draw with those of their page."""
    found: set[str] = set()
    waiting = list(names)
    seen: set[str] = set()
    by_name = dict(forms.items())
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        form = by_name.get(name)
        if isinstance(form, pikepdf.Stream) and "/Resources" not in form.stream_dict and not is_image(form):
            more = names_in(decoded(form)[0])
            found |= more
            waiting.extend(more)
    return found


def is_image(value: Any) -> bool:
    """Tell whether an object is an image XObject."""
    return isinstance(value, pikepdf.Stream) and str(value.stream_dict.get("/Subtype", "")) == "/Image"


def has_syntax_errors(page: pikepdf.Dictionary, remarks: Remarks) -> bool:
    """Parse a page's content (in C++, keeping no instruction) and tell whether qpdf found anything wrong."""
    remarks.take()
    try:
        pikepdf.parse_content_stream(pikepdf.Page(page), "BX")
    except (pikepdf.PdfError, RuntimeError, ValueError, TypeError):
        return True
    return remarks.take() > 0


def iterate_objects(pdf: pikepdf.Pdf, limit: int) -> Iterator[pikepdf.Object]:
    """Give every indirect object of the file, at most `limit`."""
    for number, item in enumerate(pdf.objects):
        if number >= limit:
            return
        yield item
