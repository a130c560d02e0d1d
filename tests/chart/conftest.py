"""Charts need helm, which the test cluster's folder holds; without Go the whole folder is skipped, loudly."""

from __future__ import annotations

import pytest

from harness import chart
from harness.servers import MissingTool


@pytest.fixture(scope="session", autouse=True)
def _helm() -> None:
    try:
        chart.helm()
    except MissingTool as missing:
        pytest.skip(f"the chart is not rendered: {missing}")
