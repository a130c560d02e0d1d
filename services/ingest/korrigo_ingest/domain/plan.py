"""Decide which half page of a scan goes to which copy, in what order; called by flows before anything is cut.

Pure arithmetic on page sizes. Source of the order and of the 1.2 threshold: domain.md 1.7. A folded A3 booklet is
scanned as recto `[P4 | P1]` and verso `[P2 | P3]`, so one sheet gives

    [recto.right, verso.left, verso.right, recto.left] = [P1, P2, P3, P4]

Nothing is ever dropped: every half page of the scan is in exactly one copy of the plan, and what does not fit the
pattern is placed beside its neighbours and named by an anomaly for a person. Only a person discards (`conserve`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from korrigo_kit.errors import Invalid

A3_ASPECT_RATIO_THRESHOLD = 1.2
"""Width to height (height to width for top/bottom halves) above which a page shows two A4 pages side by side."""

PAGES_PER_SHEET = 4

Clip = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the page as displayed, x right, y down."""


class Mode(StrEnum):
    """How a scan is split (exam's `split_config.mode`); `custom` is refused when the exam is made."""

    A3_TO_A4 = "A3_to_A4"
    A4_SINGLE = "A4_single"


class Side(StrEnum):
    """Which part of a scanned page a half page is."""

    WHOLE = "whole"
    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"


CLIPS: dict[Side, Clip | None] = {
    Side.WHOLE: None,
    Side.LEFT: (0.0, 0.0, 0.5, 1.0),
    Side.RIGHT: (0.5, 0.0, 1.0, 1.0),
    Side.TOP: (0.0, 0.0, 1.0, 0.5),
    Side.BOTTOM: (0.0, 0.5, 1.0, 1.0),
}


class AnomalyCode(StrEnum):
    """What a person has to look at; closed list of this module."""

    REMAINDER_PAGES = "REMAINDER_PAGES"
    """The last copy has fewer pages than pages_per_booklet."""
    ODD_SHEET = "ODD_SHEET"
    """The last A3 sheet has a recto and no verso: its copy holds P1 and P4 of it."""
    NOT_A3 = "NOT_A3"
    """A3 was announced and no page of the scan is A3: pages were taken one by one."""
    MIXED_SIZES = "MIXED_SIZES"
    """A page that is not A3 among A3 sheets: put at the end of the copy scanned just before it."""


@dataclass(frozen=True, slots=True)
class PageSize:
    """Width and height in points, as displayed (CropBox and /Rotate applied)."""

    width: float
    height: float


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """The exam's split settings; `pages_per_booklet` counts A4 pages of one copy, 0 = the whole scan is one copy."""

    mode: Mode
    pages_per_booklet: int
    split_horizontal: bool = True

    def __post_init__(self) -> None:
        if self.pages_per_booklet < 0:
            raise Invalid("INVALID_SPLIT_CONFIG", "pages_per_booklet must be 0 or more")


@dataclass(frozen=True, slots=True)
class HalfPage:
    """One half page (or whole A4 page) of the scan; (page_index, side) identifies it."""

    page_index: int
    side: Side
    starts_booklet: bool = False
    """Page 1 of a sheet or booklet, where the identity header is: masked for markers (decisions.md, Anonymity)."""

    @property
    def clip(self) -> Clip | None:
        """What of the displayed page this is; None = all of it."""
        return CLIPS[self.side]


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A finding for a person. `copy` is the index of the copy it holds for."""

    code: AnomalyCode
    copy: int
    page_indexes: tuple[int, ...]
    detail: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Give the form kept in tables and answers."""
        return {
            "code": self.code.value,
            "copy": self.copy,
            "page_indexes": list(self.page_indexes),
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, slots=True)
class Conservation:
    """Where the half pages went; `is_balanced` must hold at any time of a scan's life."""

    half_pages: int
    placed: int
    blank: int
    discarded: int
    unassigned: int

    @property
    def is_balanced(self) -> bool:
        """Tell whether every half page is accounted for."""
        return self.half_pages == self.placed + self.blank + self.discarded + self.unassigned

    def as_json(self) -> dict[str, int]:
        """Give the form kept in tables and answers."""
        return {
            "half_pages": self.half_pages,
            "placed": self.placed,
            "blank": self.blank,
            "discarded": self.discarded,
            "unassigned": self.unassigned,
        }


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The decision: `copies[i]` = its half pages in reading order."""

    half_pages: tuple[HalfPage, ...]
    """Every half page, in the order of the scan (left before right, top before bottom)."""
    copies: tuple[tuple[HalfPage, ...], ...]
    anomalies: tuple[Anomaly, ...]

    @property
    def is_one_whole_copy(self) -> bool:
        """Tell whether the only copy is the scan as it is, so that its uploaded bytes may serve as source."""
        return len(self.copies) == 1 and all(
            half.side is Side.WHOLE and half.page_index == position for position, half in enumerate(self.copies[0])
        )

    def anomalies_of(self, copy: int) -> tuple[Anomaly, ...]:
        """List the anomalies of one copy."""
        return tuple(anomaly for anomaly in self.anomalies if anomaly.copy == copy)


def is_a3(size: PageSize, *, split_horizontal: bool = True) -> bool:
    """Tell whether a displayed page shows two A4 pages, by its ratio alone (scanners lie about sizes)."""
    if size.width <= 0 or size.height <= 0:
        return False
    ratio = size.width / size.height if split_horizontal else size.height / size.width
    return ratio > A3_ASPECT_RATIO_THRESHOLD


def split(sizes: Sequence[PageSize], config: SplitConfig) -> SplitPlan:
    """Make the plan of a scan. Raises Invalid EMPTY_PDF without a page."""
    if not sizes:
        raise Invalid("EMPTY_PDF", "the PDF has no page")
    if config.mode is Mode.A4_SINGLE:
        return _split_pages(sizes, config, ())
    folded = [index for index, size in enumerate(sizes) if is_a3(size, split_horizontal=config.split_horizontal)]
    if folded:
        return _split_sheets(len(sizes), folded, config)
    return _split_pages(sizes, config, (AnomalyCode.NOT_A3,))


def conserve(plan: SplitPlan, *, blank: Collection[tuple[int, Side]] = ()) -> Conservation:
    """Count where the half pages of a fresh plan are; `blank` = (page_index, side) of those that stay, empty."""
    placed_keys = [(half.page_index, half.side) for copy in plan.copies for half in copy]
    blanks = sum(key in blank for key in placed_keys)
    return Conservation(
        half_pages=len(plan.half_pages),
        placed=len(placed_keys) - blanks,
        blank=blanks,
        discarded=0,
        unassigned=len({(half.page_index, half.side) for half in plan.half_pages} - set(placed_keys)),
    )


def _split_pages(sizes: Sequence[PageSize], config: SplitConfig, codes: tuple[AnomalyCode, ...]) -> SplitPlan:
    """Take whole pages in order, `pages_per_booklet` to a copy; `codes` hold for every copy."""
    pages = tuple(HalfPage(index, Side.WHOLE) for index in range(len(sizes)))
    copies = tuple(
        (replace(chunk[0], starts_booklet=True), *chunk[1:]) for chunk in _chunks(pages, config.pages_per_booklet)
    )
    anomalies = [
        Anomaly(code, number, tuple(half.page_index for half in copy))
        for number, copy in enumerate(copies)
        for code in codes
    ]
    anomalies += _remainder(copies, config.pages_per_booklet, missing=0)
    return SplitPlan(tuple(half for copy in copies for half in copy), copies, tuple(anomalies))


def _split_sheets(count: int, folded: Sequence[int], config: SplitConfig) -> SplitPlan:
    """Pair A3 pages as recto and verso, read them in booklet order, and put loose A4 pages beside their sheet."""
    before, after = (Side.LEFT, Side.RIGHT) if config.split_horizontal else (Side.TOP, Side.BOTTOM)
    ordered: list[HalfPage] = []
    for recto, verso in zip(folded[0::2], [*folded[1::2], None], strict=False):
        first, last = HalfPage(recto, after, starts_booklet=True), HalfPage(recto, before)
        inner = () if verso is None else (HalfPage(verso, before), HalfPage(verso, after))
        ordered += [first, *inner, last]
    chunks = [list(chunk) for chunk in _chunks(ordered, config.pages_per_booklet)]
    for chunk in chunks:
        chunk[0] = replace(chunk[0], starts_booklet=True)

    is_odd = len(folded) % 2 == 1
    anomalies: list[Anomaly] = []
    if is_odd:
        touched = {number for number, chunk in enumerate(chunks) if any(h.page_index == folded[-1] for h in chunk)}
        anomalies += [Anomaly(AnomalyCode.ODD_SHEET, number, (folded[-1],)) for number in sorted(touched)]
    anomalies += _remainder(chunks, config.pages_per_booklet, missing=PAGES_PER_SHEET // 2 if is_odd else 0)

    loose = [index for index in range(count) if index not in set(folded)]
    owners = {index: _copy_beside(chunks, folded, index) for index in loose}
    for index, owner in owners.items():
        chunks[owner].append(HalfPage(index, Side.WHOLE))
        anomalies.append(Anomaly(AnomalyCode.MIXED_SIZES, owner, (index,)))

    copies = tuple(tuple(chunk) for chunk in chunks)
    by_scan = {side: rank for rank, side in enumerate((Side.WHOLE, before, after))}
    half_pages = sorted((h for copy in copies for h in copy), key=lambda h: (h.page_index, by_scan[h.side]))
    return SplitPlan(tuple(half_pages), copies, tuple(anomalies))


def _copy_beside(chunks: Sequence[Sequence[HalfPage]], folded: Sequence[int], index: int) -> int:
    """Find the copy of the A3 page scanned just before `index` (the first copy when there is none)."""
    neighbour = max((page for page in folded if page < index), default=None)
    if neighbour is None:
        return 0
    return max(number for number, chunk in enumerate(chunks) if any(h.page_index == neighbour for h in chunk))


def _chunks(pages: Sequence[HalfPage], size: int) -> list[Sequence[HalfPage]]:
    if size == 0:
        return [pages]
    return [pages[start : start + size] for start in range(0, len(pages), size)]


def _remainder(copies: Sequence[Sequence[HalfPage]], expected: int, *, missing: int) -> list[Anomaly]:
    """Name a short last copy; `missing` half pages of an absent verso are named by ODD_SHEET already."""
    last = copies[-1]
    if expected == 0 or len(last) + missing >= expected:
        return []
    indexes = tuple(dict.fromkeys(half.page_index for half in last))
    detail = {"expected": expected, "found": len(last)}
    return [Anomaly(AnomalyCode.REMAINDER_PAGES, len(copies) - 1, indexes, detail)]
