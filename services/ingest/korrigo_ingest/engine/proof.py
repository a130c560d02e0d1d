"""Prove that a page shows exactly one picture over its whole area, so that the scan's own bytes can be shown.

Any doubt means no proof, and the page is rendered. The proof reads the content stream with a small graphics state:
only state operators, invisible text (mode 3, not of a Type 3 font, which has no modes) and one `Do` of one JPEG may
stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pikepdf

from korrigo_ingest.engine import codec
from korrigo_ingest.engine.boxes import PageBox, Rect
from korrigo_ingest.engine.content import content_streams, decoded, is_image

CONTENT_BYTES = 1 << 20
"""Longer content is not a scan's page."""

_TOLERANCE_POINTS = 0.75
_TOLERANCE_ASPECT = 0.02
_INVISIBLE = 3
_STATE = frozenset("w J j M d ri i g G rg RG k K cs CS sc SC Tc Tw Tz TL Ts Td TD Tm T* BT ET BMC EMC MP DP".split())
_PLAIN_STATE_KEYS = frozenset("/Type /ca /CA /BM /SMask /AIS /OP /op /OPM /SA /LW".split())
_SHOW_TEXT = frozenset({"Tj", "TJ", "'", '"'})
_INVISIBLE_FLAGS = 2 | 32  # hidden, no view

Matrix = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class ScanPage:
    """The proof: the JPEG that is the page."""

    image: pikepdf.Stream
    data: bytes
    header: codec.JpegHeader

    @property
    def is_grey(self) -> bool:
        """Tell whether the JPEG has no colour."""
        return self.header.components == 1


class Doubt(Exception):
    """The page may show something else, or the same otherwise."""


@dataclass(frozen=True, slots=True)
class _State:
    matrix: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    text_mode: int = 0
    has_plain_font: bool = False


@dataclass(slots=True)
class _Reader:
    """Runs one content stream and remembers the image that it drew."""

    box: PageBox
    resources: pikepdf.Dictionary
    state: _State = field(default_factory=_State)
    stack: list[_State] = field(default_factory=list)
    pending: list[Rect] = field(default_factory=list)
    image: pikepdf.Stream | None = None
    placed: Matrix | None = None

    def run(self, instructions: Sequence[Any]) -> None:
        special: dict[str, Callable[[Sequence[Any]], None]] = {
            "q": self._save, "Q": self._restore, "cm": self._concatenate, "Do": self._draw, "gs": self._set_state,
            "Tr": self._set_text_mode, "Tf": self._set_font, "re": self._add_rectangle, "n": self._end_path,
            "W": self._keep, "W*": self._keep, "BDC": self._begin_marked,
        }  # fmt: skip
        for instruction in instructions:
            operator = str(instruction.operator)  # "INLINE IMAGE" for one, which is in no list
            if operator in _STATE:
                continue
            if operator in _SHOW_TEXT:
                self._show_text()
            elif operator in special:
                special[operator](instruction.operands)
            else:
                raise Doubt(operator)

    def _save(self, _: Sequence[Any]) -> None:
        self.stack.append(self.state)

    def _restore(self, _: Sequence[Any]) -> None:
        if not self.stack:
            raise Doubt("Q without q")
        self.state = self.stack.pop()

    def _concatenate(self, operands: Sequence[Any]) -> None:
        a, b, c, d, e, f = (float(value) for value in operands)
        a2, b2, c2, d2, e2, f2 = self.state.matrix
        matrix = (
            a * a2 + b * c2, a * b2 + b * d2, c * a2 + d * c2, c * b2 + d * d2,
            e * a2 + f * c2 + e2, e * b2 + f * d2 + f2,
        )  # fmt: skip
        self.state = replace(self.state, matrix=matrix)

    def _set_text_mode(self, operands: Sequence[Any]) -> None:
        self.state = replace(self.state, text_mode=int(operands[0]))

    def _set_font(self, operands: Sequence[Any]) -> None:
        fonts = self.resources.get("/Font")
        font = fonts.get(str(operands[0])) if isinstance(fonts, pikepdf.Dictionary) else None
        is_plain = isinstance(font, pikepdf.Dictionary) and str(font.get("/Subtype", "")) != "/Type3"
        self.state = replace(self.state, has_plain_font=is_plain)

    def _show_text(self) -> None:
        if self.state.text_mode != _INVISIBLE or not self.state.has_plain_font:
            raise Doubt("visible text")

    def _set_state(self, operands: Sequence[Any]) -> None:
        states = self.resources.get("/ExtGState")
        wanted = states.get(str(operands[0])) if isinstance(states, pikepdf.Dictionary) else None
        if not isinstance(wanted, pikepdf.Dictionary):
            raise Doubt("unknown graphics state")
        if not set(wanted.keys()) <= _PLAIN_STATE_KEYS:
            raise Doubt("graphics state")
        is_plain = (
            all(float(wanted.get(key, 1)) == 1 for key in ("/ca", "/CA"))
            and str(wanted.get("/BM", "/Normal")) in {"/Normal", "/Compatible"}
            and str(wanted.get("/SMask", "/None")) == "/None"
        )
        if not is_plain:
            raise Doubt("transparency")

    def _begin_marked(self, operands: Sequence[Any]) -> None:
        if str(operands[0]) == "/OC":
            raise Doubt("optional content")

    def _add_rectangle(self, operands: Sequence[Any]) -> None:
        x, y, width, height = (float(value) for value in operands)
        if self.state.matrix[1] or self.state.matrix[2]:
            raise Doubt("turned rectangle")
        self.pending.append(_mapped((x, y, x + width, y + height), self.state.matrix))

    def _keep(self, _: Sequence[Any]) -> None:
        """Clip: allowed when one rectangle that covers the page is the path."""
        if len(self.pending) != 1 or not _covers(self.pending[0], self.box.rect):
            raise Doubt("clip")

    def _end_path(self, _: Sequence[Any]) -> None:
        self.pending.clear()

    def _draw(self, operands: Sequence[Any]) -> None:
        drawings = self.resources.get("/XObject")
        drawing = drawings.get(str(operands[0])) if isinstance(drawings, pikepdf.Dictionary) else None
        if self.image is not None or not isinstance(drawing, pikepdf.Stream) or not is_image(drawing):
            raise Doubt("another drawing")
        self.image, self.placed = drawing, self.state.matrix


def scan_page(page: pikepdf.Dictionary, box: PageBox) -> ScanPage | None:
    """Prove that the page, displayed, is one JPEG and nothing else; None when in doubt."""
    try:
        return _proved(page, box)
    except (Doubt, pikepdf.PdfError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
        return None


def _proved(page: pikepdf.Dictionary, box: PageBox) -> ScanPage:
    resources = page.get("/Resources")
    if box.rotate or not box.is_sound or not isinstance(resources, pikepdf.Dictionary):
        raise Doubt("page")
    _require_no_visible_annotation(page)
    streams = content_streams(page)
    size = 0
    for stream in streams:
        data, is_whole = decoded(stream)
        size += len(data)
        if not is_whole or size > CONTENT_BYTES:
            raise Doubt("content")
    reader = _Reader(box, resources)
    reader.run(pikepdf.parse_content_stream(pikepdf.Page(page)))
    if reader.image is None or reader.placed is None:
        raise Doubt("no image")
    _require_full_page(reader.placed, box)
    return _plain_jpeg(reader.image, box)


def _require_no_visible_annotation(page: pikepdf.Dictionary) -> None:
    annotations = page.get("/Annots")
    if annotations is None:
        return
    for annotation in annotations.as_list():
        if not isinstance(annotation, pikepdf.Dictionary):
            continue
        is_hidden = int(annotation.get("/F", 0)) & _INVISIBLE_FLAGS
        is_silent = str(annotation.get("/Subtype", "")) in {"/Link", "/Popup"} and "/AP" not in annotation
        if not is_hidden and not is_silent:
            raise Doubt("annotation")


def _require_full_page(matrix: Matrix, box: PageBox) -> None:
    a, b, c, d, e, f = matrix
    if abs(b) > 1e-3 or abs(c) > 1e-3 or a <= 0 or d <= 0:
        raise Doubt("matrix")
    drawn = (e, f, e + a, f + d)
    if any(abs(side - edge) > _TOLERANCE_POINTS for side, edge in zip(drawn, box.rect, strict=True)):
        raise Doubt("not the whole page")


def _plain_jpeg(image: pikepdf.Stream, box: PageBox) -> ScanPage:
    """Check that a viewer of the bare JPEG shows what a viewer of the page shows."""
    values = image.stream_dict
    if {"/SMask", "/Mask", "/Decode", "/DecodeParms", "/OC", "/ImageMask", "/SMaskInData", "/F"} & set(values.keys()):
        raise Doubt("image dictionary")
    filters = values.get("/Filter")
    names = [str(item) for item in filters.as_list()] if isinstance(filters, pikepdf.Array) else [str(filters)]
    if names != ["/DCTDecode"] or int(values.get("/BitsPerComponent", 8)) != 8:
        raise Doubt("filter")
    data = image.read_raw_bytes()
    header = codec.read_header(data)
    if header is None or (header.width, header.height) != (int(values["/Width"]), int(values["/Height"])):
        raise Doubt("JPEG header")
    if _components(values.get("/ColorSpace")) != header.components or not _is_complete(data):
        raise Doubt("colours")
    aspect = (box.width / box.height) / (header.width / header.height)
    if abs(aspect - 1) > _TOLERANCE_ASPECT:
        raise Doubt("pixels are not square")
    return ScanPage(image, data, header)


def _components(space: Any) -> int:
    """Count the colours of a plain RGB or grey colour space; 0 for any other."""
    if isinstance(space, pikepdf.Name):
        return {"/DeviceRGB": 3, "/DeviceGray": 1}.get(str(space), 0)
    if isinstance(space, pikepdf.Array) and len(space) == 2:
        kind = str(space[0])
        if kind == "/ICCBased" and isinstance(space[1], pikepdf.Stream):
            count = int(space[1].stream_dict.get("/N", 0))
            return count if count in {1, 3} else 0
        return {"/CalRGB": 3, "/CalGray": 1}.get(kind, 0)
    return 0


def _is_complete(data: bytes) -> bool:
    """Refuse a JPEG cut short, and one whose Exif would make browsers turn it (PDF viewers do not)."""
    return b"\xff\xd9" in data[-64:] and b"Exif\x00\x00" not in data[:4096]


def _mapped(rect: Rect, matrix: Matrix) -> Rect:
    a, b, c, d, e, f = matrix
    xs = [a * x + c * y + e for x in (rect[0], rect[2]) for y in (rect[1], rect[3])]
    ys = [b * x + d * y + f for x in (rect[0], rect[2]) for y in (rect[1], rect[3])]
    return min(xs), min(ys), max(xs), max(ys)


def _covers(outer: Rect, inner: Rect) -> bool:
    slack = _TOLERANCE_POINTS
    return (
        outer[0] <= inner[0] + slack
        and outer[1] <= inner[1] + slack
        and outer[2] >= inner[2] - slack
        and outer[3] >= inner[3] - slack
    )
