"""Whoever changes a threshold, a window or a `for` of the rules makes a test fail: proved by changing each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.rules_mutation import Mutant, expressions, mutants, passes

IS_SOAK = os.environ.get("KORRIGO_TEST_SOAK") == "1"
SAMPLE = 20  # CI runs one mutant in 20, soak all

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is missing")

ALL = mutants()
FIRST = {mutant.name: mutant for mutant in ALL}


def _chosen() -> list[Mutant]:
    return ALL if IS_SOAK else ALL[::SAMPLE]


def _survivors(chosen: list[Mutant], folder: Path) -> Iterator[Mutant]:
    def is_survivor(pair: tuple[int, Mutant]) -> bool:
        return passes(pair[1], folder / str(pair[0]))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for mutant, survived in zip(chosen, pool.map(is_survivor, enumerate(chosen)), strict=True):
            if survived:
                yield mutant


def test_mutants_change_every_number_window_and_comparison() -> None:
    text = 'sum(increase(a{b!="5", c=~"x|5.."}[5m])) / 5 > 0.05 # 9\nand on (job) time() - b2 >= 300 offset 90s'
    changes = [change for change, _ in expressions(text)]
    assert {change.split(" -> ")[0] for change in changes} == {
        "line 1, 5m", "line 1, 5", "line 1, >", "line 1, 0.05",
        "line 2, and", "line 2, >=", "line 2, 300", "line 2, 90s",
    }  # fmt: skip
    assert "line 1, 5m -> 360s" in changes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(FIRST) if IS_SOAK else sorted(FIRST)[::SAMPLE])
def test_rules_without_a_change_pass_alone(name: str, tmp_path: Path) -> None:
    """Else a mutant would be killed by how it is run and not by its change."""
    assert passes(FIRST[name], tmp_path, is_changed=False)


@pytest.mark.timeout(0 if IS_SOAK else 600)
def test_no_mutant_survives(tmp_path: Path) -> None:
    chosen = _chosen()
    assert len(chosen) * SAMPLE >= len(ALL) > 500
    survivors = [str(mutant) for mutant in _survivors(chosen, tmp_path)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed (of {len(ALL)} in all)")
    assert survivors == []
