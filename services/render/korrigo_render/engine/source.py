"""Reading the source PDF of a copy: its pages as displayed, and what an incremental update must know.

Called by `append`. qpdf (pikepdf) parses without repairing: a file that needs repair has no cross-reference section
to append to and is refused (MuPDF refuses the same files; import rewrites them, so none becomes a source). The page
tree is walked by hand, because the library's own page list rewrites odd trees in memory, and we append to the file
as it is, not to that copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pikepdf
from pikepdf.models import PdfParsingError

from korrigo_kit.sandbox import EngineError
from korrigo_render.engine.update import Tail

_LETTER = (0.0, 0.0, 612.0, 792.0)  # what PDFium and MuPDF assume for a page without a usable MediaBox
_INHERITED = ("/Resources", "/MediaBox", "/CropBox", "/Rotate")
_MOST_PAGES = 20_000  # a walk that never ends is a hostile page tree
_DEEPEST = 100
_LARGEST_GAP = 5_000
_A4 = (595.28, 841.89)
# Counting q/Q needs the decoded content; a larger one than this (compressed bytes) is taken to be balanced.
_BALANCE_LIMIT = 2 << 20

Box = tuple[float, float, float, float]
Reference = tuple[int, int]


@dataclass(frozen=True, slots=True)
class View:
    """A page as displayed, measured in design points: the page scaled so that it fits an A4 sheet.

    `width`, `height`: design points. `matrix`: from design space (origin bottom left of the displayed page, y up)
    to the page's user space, so that letters have the same share of a page whatever its size or /UserUnit.
    """

    width: float
    height: float
    matrix: tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Balance:
    """How a page's content ends. `closing`: operators that end what it left open.

    `must_stand_apart`: it restores more than it saved (viewers ignore a Q too many; a q put before the content would
    give it something to restore and change the page), or it ends inside an object that would swallow what follows.
    """

    closing: str
    must_stand_apart: bool


@dataclass(slots=True)
class SourcePage:
    """One leaf of the page tree. `reference` is None for a leaf written inside its parent's /Kids."""

    pdf: pikepdf.Pdf = field(repr=False)
    node: pikepdf.Dictionary
    reference: Reference | None
    parent: pikepdf.Dictionary
    parent_reference: Reference | None
    position: int
    inherited: dict[str, pikepdf.Object] = field(repr=False)
    is_repeated: bool = False

    def attribute(self, key: str) -> pikepdf.Object | None:
        """Return an attribute of the page or, failing that, of its nearest ancestor."""
        found = self.node.get(key)
        return found if found is not None else self.inherited.get(key)

    def view(self) -> View:
        """Work out how the page is displayed (CropBox within MediaBox, then /Rotate clockwise)."""
        x0, y0, x1, y1 = self._visible_box()
        turn = _quarter_turn(self.attribute("/Rotate"))
        width, height = (x1 - x0, y1 - y0) if turn % 180 == 0 else (y1 - y0, x1 - x0)
        sheet = _A4 if width <= height else (_A4[1], _A4[0])
        k = max(width / sheet[0], height / sheet[1])
        matrix = {
            0: (k, 0.0, 0.0, k, x0, y0),
            90: (0.0, k, -k, 0.0, x1, y0),
            180: (-k, 0.0, 0.0, -k, x1, y1),
            270: (0.0, -k, k, 0.0, x0, y1),
        }[turn]
        return View(width / k, height / k, matrix)

    def _visible_box(self) -> Box:
        media = _box(self.attribute("/MediaBox")) or _LETTER
        crop = _box(self.attribute("/CropBox")) or media
        both = (max(media[0], crop[0]), max(media[1], crop[1]), min(media[2], crop[2]), min(media[3], crop[3]))
        return both if both[0] < both[2] and both[1] < both[3] else media

    def contents(self) -> list[str]:
        """List references to the page's content streams, in order."""
        return [_reference_text(stream) for stream in self._streams()]

    def balance(self) -> Balance:
        """Tell what the page's content leaves open, so that the overlay is not scaled, clipped or hidden with it."""
        self.pdf.get_warnings()  # those of earlier work; reading the list empties it
        depth = lowest = marked = 0
        in_text = False
        for operator in self._balance_operators():
            depth += {"q": 1, "Q": -1}.get(operator, 0)
            lowest = min(lowest, depth)
            marked = max(0, marked + {"BMC": 1, "BDC": 1, "EMC": -1}.get(operator, 0))
            in_text = operator == "BT" or (in_text and operator != "ET")
        is_cut_short = bool(self.pdf.get_warnings())
        return Balance("ET\n" * in_text + "EMC\n" * marked + "Q\n" * (depth - lowest), lowest < 0 or is_cut_short)

    def decoded_contents(self) -> bytes | None:
        """Return the page's whole content, decoded; None when a stream cannot be decoded."""
        try:
            return b"\n".join(stream.read_bytes() for stream in self._streams())
        except pikepdf.PdfError:
            return None

    def _streams(self) -> list[pikepdf.Stream]:
        found = self.node.get("/Contents")
        parts = found.as_list() if isinstance(found, pikepdf.Array) else [found]
        return [part for part in parts if isinstance(part, pikepdf.Stream)]

    def _balance_operators(self) -> Iterator[str]:
        lengths = [stream.get("/Length", 0) for stream in self._streams()]
        if not lengths or sum(int(length) for length in lengths) > _BALANCE_LIMIT:
            return
        try:
            instructions = pikepdf.parse_content_stream(pikepdf.Page(self.node), operators="q Q BT ET BMC BDC EMC")
        except (pikepdf.PdfError, PdfParsingError, ValueError, TypeError):
            return  # content that only a lenient viewer shows: treated as balanced, as viewers do
        for instruction in instructions:
            yield str(instruction.operator)


@dataclass(slots=True)
class Source:
    """An open source."""

    pdf: pikepdf.Pdf
    file: BinaryIO
    tail: Tail
    pages: list[SourcePage]
    root_pages: pikepdf.Dictionary
    ends_in_newline: bool
    size: int

    def close(self) -> None:
        """Release the file."""
        self.pdf.close()
        self.file.close()


def open_source(path: Path) -> Source:
    """Open and walk a source; EngineError SOURCE_UNREADABLE when it cannot be built upon."""
    try:
        # Opened here because the library would make the name absolute, which the sandbox cannot reach.
        file = path.open("rb")
    except OSError as error:
        raise EngineError("SOURCE_UNREADABLE", "the source cannot be read", detail=str(error)) from error
    try:
        # Pushing inherited attributes down would give pages references to objects that the file does not hold.
        pdf = pikepdf.open(
            file,
            attempt_recovery=False,
            suppress_warnings=True,
            inherit_page_attributes=False,
            access_mode=pikepdf.AccessMode.mmap,
        )
        return _read(pdf, file)
    except EngineError:
        file.close()
        raise
    except pikepdf.PasswordError as error:
        file.close()
        raise EngineError("SOURCE_UNREADABLE", "the source is encrypted", detail=str(error)) from error
    except (pikepdf.PdfError, OSError, RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        file.close()
        raise EngineError("SOURCE_UNREADABLE", "the source cannot be parsed", detail=str(error)) from error


def _read(pdf: pikepdf.Pdf, file: BinaryIO) -> Source:
    if pdf.is_encrypted:
        raise EngineError("SOURCE_UNREADABLE", "the source is encrypted")
    root_pages = pdf.Root.get("/Pages")
    if not isinstance(root_pages, pikepdf.Dictionary) or not root_pages.is_indirect:
        raise EngineError("SOURCE_UNREADABLE", "the source has no page tree")
    pages = list(_walk(pdf, root_pages))
    seen: set[Reference] = set()
    for page in pages:
        if page.reference is not None:
            page.is_repeated = page.reference in seen
            seen.add(page.reference)
    file.seek(0)
    head = file.read(1024)
    size = file.seek(0, 2)
    file.seek(max(0, size - 2048))
    end = file.read()
    tail = _tail(pdf, file, head, end)
    if tail is None:
        raise EngineError("SOURCE_UNREADABLE", "the source does not end as a PDF does")
    return Source(pdf, file, tail, pages, root_pages, end.endswith((b"\n", b"\r")), size)


def _tail(pdf: pikepdf.Pdf, file: BinaryIO, head: bytes, end: bytes) -> Tail | None:
    header_at = head.find(b"%PDF-")
    marks = re.findall(rb"startxref\s+(\d+)", end)
    if header_at < 0 or not marks or not pdf.Root.is_indirect:
        return None
    at = int(marks[-1])
    file.seek(at + header_at)
    found = re.match(rb"\s*(?:(xref)\b|\d+\s+\d+\s+obj\b)", file.read(64))
    if found is None:
        return None
    next_number = _next_number(pdf)
    info = pdf.trailer.get("/Info")
    first_id = pdf.trailer.get("/ID")
    return Tail(
        previous_xref_at=at,
        is_xref_stream=found.group(1) is None,
        next_number=next_number,
        root=_reference_text(pdf.Root),
        info=_reference_text(info) if info is not None and info.is_indirect else None,
        first_id=bytes(first_id.as_list()[0]) if isinstance(first_id, pikepdf.Array) and len(first_id) else None,
        header_at=header_at,
        unlisted=_unlisted(pdf, next_number),
    )


def _next_number(pdf: pikepdf.Pdf) -> int:
    """Return the first object number that the file does not use, however wrong its /Size is."""
    unused = pdf.make_indirect(pikepdf.Dictionary())
    return max(unused.objgen[0], int(pdf.trailer.get("/Size", 0)))


def _unlisted(pdf: pikepdf.Pdf, next_number: int) -> tuple[int, ...]:
    gap = range(int(pdf.trailer.get("/Size", 0)), next_number)
    if len(gap) > _LARGEST_GAP:  # one reference to object 99999999: not worth a table of that length
        return ()
    return tuple(number for number in gap if pdf.get_object((number, 0)) is None)


def _walk(pdf: pikepdf.Pdf, root: pikepdf.Dictionary) -> Iterator[SourcePage]:
    """Yield the leaves in order; a node met twice on the way down ends that branch."""
    count = 0
    # (node, inherited by its kids, numbers of the nodes above, next kid)
    stack: list[tuple[pikepdf.Dictionary, dict[str, pikepdf.Object], frozenset[Reference], int]]
    stack = [(root, _inherit({}, root), frozenset([root.objgen]), 0)]
    while stack:
        node, inherited, above, at = stack.pop()
        kids = node.get("/Kids")
        if not isinstance(kids, pikepdf.Array) or at >= len(kids):
            continue
        stack.append((node, inherited, above, at + 1))
        kid = kids[at]
        if not isinstance(kid, pikepdf.Dictionary):
            continue
        reference = kid.objgen if kid.is_indirect else None
        if "/Kids" in kid:
            if (reference is None or reference not in above) and len(stack) < _DEEPEST:
                inner = above | {reference} if reference else above
                stack.append((kid, _inherit(inherited, kid), inner, 0))
            continue
        count += 1
        if count > _MOST_PAGES:
            raise EngineError("SOURCE_UNREADABLE", f"the source has more than {_MOST_PAGES} pages")
        yield SourcePage(pdf, kid, reference, node, node.objgen if node.is_indirect else None, at, inherited)


def _inherit(above: dict[str, pikepdf.Object], node: pikepdf.Dictionary) -> dict[str, pikepdf.Object]:
    own = {key: node[key] for key in _INHERITED if key in node}
    return {**above, **own} if own else above


def _box(value: pikepdf.Object | None) -> Box | None:
    if not isinstance(value, pikepdf.Array) or len(value) < 4:
        return None
    try:
        a, b, c, d = (float(v) for v in value.as_list()[:4])
    except (TypeError, ValueError):
        return None
    box = (min(a, c), min(b, d), max(a, c), max(b, d))
    return box if box[0] < box[2] and box[1] < box[3] and max(map(abs, box)) < 1e7 else None


def _quarter_turn(value: pikepdf.Object | int | None) -> int:
    try:
        turn = int(value) % 360 if value is not None else 0
    except (TypeError, ValueError):
        return 0
    return turn if turn % 90 == 0 else 0


def _reference_text(found: pikepdf.Object) -> str:
    number, generation = found.objgen
    return f"{number} {generation} R"
