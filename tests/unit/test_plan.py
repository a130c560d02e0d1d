"""The split plan: the order of folded A3 sheets, what is short or odd, and that nothing is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.corpora import needs_corpora, truth
from korrigo_ingest.domain.plan import (
    AnomalyCode,
    Mode,
    PageSize,
    Side,
    SplitConfig,
    SplitPlan,
    conserve,
    is_a3,
    split,
)
from korrigo_kit.errors import Invalid

A3 = PageSize(1190.55, 841.89)
A4 = PageSize(595.28, 841.89)
STACKED = PageSize(841.89, 1190.55)


def placed(plan: SplitPlan) -> list[list[tuple[int, str]]]:
    return [[(half.page_index, half.side.value) for half in copy] for copy in plan.copies]


def codes(plan: SplitPlan) -> list[tuple[str, int]]:
    return [(anomaly.code.value, anomaly.copy) for anomaly in plan.anomalies]


def a3(pages_per_booklet: int, *, split_horizontal: bool = True) -> SplitConfig:
    return SplitConfig(Mode.A3_TO_A4, pages_per_booklet, split_horizontal)


def test_one_sheet_is_read_as_p1_to_p4() -> None:
    plan = split([A3, A3], a3(4))
    assert placed(plan) == [[(0, "right"), (1, "left"), (1, "right"), (0, "left")]]
    assert [half.clip for half in plan.copies[0]] == [(0.5, 0, 1, 1), (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 0.5, 1)]
    assert [half.starts_booklet for half in plan.copies[0]] == [True, False, False, False]
    assert plan.anomalies == ()


def test_top_and_bottom_halves_take_the_places_of_left_and_right() -> None:
    plan = split([STACKED, STACKED], a3(4, split_horizontal=False))
    assert placed(plan) == [[(0, "bottom"), (1, "top"), (1, "bottom"), (0, "top")]]
    assert plan.copies[0][0].clip == (0.0, 0.5, 1.0, 1.0)
    assert not is_a3(A3, split_horizontal=False)


def test_zero_pages_per_booklet_makes_one_copy_of_all_sheets_with_every_header_marked() -> None:
    plan = split([A3] * 4, a3(0))
    assert placed(plan) == [
        [(0, "right"), (1, "left"), (1, "right"), (0, "left"), (2, "right"), (3, "left"), (3, "right"), (2, "left")]
    ]
    assert [half.starts_booklet for half in plan.copies[0]] == [True, False, False, False] * 2
    assert not plan.is_one_whole_copy


def test_a_last_recto_without_verso_is_kept_and_named() -> None:
    plan = split([A3] * 5, a3(4))
    assert placed(plan)[2] == [(4, "right"), (4, "left")]
    assert codes(plan) == [("ODD_SHEET", 2)]
    assert plan.anomalies_of(2)[0].as_json() == {"code": "ODD_SHEET", "copy": 2, "page_indexes": [4], "detail": {}}


def test_a_short_last_copy_of_sheets_is_named_even_when_its_sheet_is_odd_too() -> None:
    assert codes(split([A3] * 6, a3(8))) == [("REMAINDER_PAGES", 1)]
    assert codes(split([A3] * 3, a3(8))) == [("ODD_SHEET", 0)]
    assert codes(split([A3] * 5, a3(8))) == [("ODD_SHEET", 1), ("REMAINDER_PAGES", 1)]


def test_a_loose_a4_page_follows_the_copy_scanned_before_it() -> None:
    plan = split([A3, A3, A4, A3, A3], a3(4))
    assert placed(plan) == [
        [(0, "right"), (1, "left"), (1, "right"), (0, "left"), (2, "whole")],
        [(3, "right"), (4, "left"), (4, "right"), (3, "left")],
    ]
    assert codes(plan) == [("MIXED_SIZES", 0)]
    assert len(plan.half_pages) == 9
    assert codes(split([A4, A3, A3], a3(4))) == [("MIXED_SIZES", 0)]


def test_a4_scans_announced_as_a3_are_taken_page_by_page_for_a_person() -> None:
    plan = split([A4] * 5, a3(4))
    assert placed(plan) == [[(n, "whole") for n in range(4)], [(4, "whole")]]
    assert codes(plan) == [("NOT_A3", 0), ("NOT_A3", 1), ("REMAINDER_PAGES", 1)]


def test_single_pages_are_cut_into_chunks_and_the_rest_is_named() -> None:
    plan = split([A4] * 7, SplitConfig(Mode.A4_SINGLE, 3))
    assert placed(plan) == [
        [(0, "whole"), (1, "whole"), (2, "whole")],
        [(n, "whole") for n in (3, 4, 5)],
        [(6, "whole")],
    ]
    assert [copy[0].starts_booklet for copy in plan.copies] == [True, True, True]
    assert plan.anomalies[0].code is AnomalyCode.REMAINDER_PAGES
    assert plan.anomalies[0].detail == {"expected": 3, "found": 1}
    assert split([A4] * 6, SplitConfig(Mode.A4_SINGLE, 3)).anomalies == ()


def test_landscape_pages_of_a_single_scan_are_pages() -> None:
    plan = split([A4, A3, A4], SplitConfig(Mode.A4_SINGLE, 0))
    assert plan.is_one_whole_copy
    assert plan.anomalies == ()


def test_no_page_and_negative_counts_are_refused() -> None:
    with pytest.raises(Invalid, match="EMPTY_PDF"):
        split([], a3(4))
    with pytest.raises(Invalid, match="INVALID_SPLIT_CONFIG"):
        a3(-1)


@given(
    sizes=st.lists(st.sampled_from([A3, A4, STACKED]), min_size=1, max_size=40),
    config=st.builds(SplitConfig, st.sampled_from(list(Mode)), st.integers(0, 12), st.booleans()),
)
def test_every_half_page_is_in_exactly_one_copy(sizes: list[PageSize], config: SplitConfig) -> None:
    plan = split(sizes, config)
    everywhere = [(half.page_index, half.side) for copy in plan.copies for half in copy]
    assert len(everywhere) == len(set(everywhere)) == len(plan.half_pages)
    assert {page for page, _ in everywhere} == set(range(len(sizes)))
    for page in range(len(sizes)):
        sides = {side for index, side in everywhere if index == page}
        assert sides in ({Side.WHOLE}, {Side.LEFT, Side.RIGHT}, {Side.TOP, Side.BOTTOM})
    counted = conserve(plan, blank={everywhere[0]})
    assert counted.is_balanced
    assert (counted.blank, counted.unassigned, counted.discarded) == (1, 0, 0)
    assert all(copy and copy[0].starts_booklet for copy in plan.copies)
    assert all(0 <= anomaly.copy < len(plan.copies) for anomaly in plan.anomalies)


class TestTruth:
    """The A3 batches of the corpora."""

    pytestmark = needs_corpora

    def test_the_clean_batch_comes_out_as_it_is(self) -> None:
        expected = truth("scans/a3/clean_12x1.truth.json")
        plan = split([A3] * expected["a3_pages"], a3(4))
        assert placed(plan) == [
            [(page["a3_page"] - 1, page["half"]) for page in copy["pages"]] for copy in expected["copies"]
        ]
        assert plan.anomalies == ()
        blank = {(half["a3_page"] - 1, Side(half["half"])) for half in expected["half_pages"] if half["blank"]}
        counted = conserve(plan, blank=blank)
        conservation = expected["conservation"]
        assert counted.half_pages == conservation["half_pages"]
        assert counted.placed + counted.blank == conservation["copy_page"]
        assert counted.blank == conservation["of_which_blank"]

    def test_the_dirty_batch_loses_nothing_and_asks_a_person(self) -> None:
        expected = truth("scans/a3/dirty_11_students.truth.json")
        plan = split([A3] * expected["a3_pages"], a3(4))
        half_pages = expected["conservation"]["half_pages"]
        counted = {"half_pages": half_pages, "placed": half_pages, "blank": 0, "discarded": 0, "unassigned": 0}
        assert conserve(plan).as_json() == counted
        assert codes(plan) == [("ODD_SHEET", 12)]
