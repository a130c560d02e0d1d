"""Every drill, in one run of `korrigo drill` on one scratch instance: noticed, named, healed, over, written down.

The run prints its table; each drill is a test of its own, so that the report names what failed. With
KORRIGO_TEST_SOAK=1 outages last ten minutes, as reliability.md 13 has it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from harness.instance import KORRIGO
from harness.processes import clean_environment
from korrigo.drills import catalogue, table
from korrigo.drills.drill import Drill
from korrigo.drills.engine import Result

IS_SOAK = os.environ.get("KORRIGO_TEST_SOAK") == "1"
# What the playbooks list, the matrix of reliability.md 13, and the recovery of the monitoring: none may be left out.
CAUSES = """
    worker-down corrupted-pdf import-timeout disk-full broker-down import-rolled-back
    render-error missing-page annotation-out-of-page out-of-memory expired-lock
    browser-crash heartbeat-loss token-mismatch concurrent-finalize
    slow-query lock-contention queue-backlog missing-event
    object-store-down room-down database-down prometheus-down alertmanager-down
""".split()
PROGRAMS = ("prometheus", "prometheus-alertmanager")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.timeout(7200 if IS_SOAK else 2100),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in PROGRAMS), reason="prometheus or alertmanager is missing"
    ),
]


def _parameter(kind: type[Drill]) -> Any:
    # Mounting is impossible for other users than root; nowhere else may one of these be skipped.
    marks = [pytest.mark.allowed_skip("mounting needs root")] if kind.needs_volume and os.geteuid() != 0 else []
    return pytest.param(kind, marks=marks, id=kind.title())


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """Run all drills once and return what the command told."""
    words = [str(KORRIGO), "drill", "--json", *(("--hold", "600") if IS_SOAK else ())]
    done = subprocess.run(
        words, env=clean_environment(), capture_output=True, text=True, timeout=7000 if IS_SOAK else 2000, check=False
    )
    assert done.stdout.startswith("{"), done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_cause_has_a_drill() -> None:
    assert set(CAUSES) <= {kind.cause for kind in catalogue.ALL}
    names = [kind.title() for kind in catalogue.ALL]
    assert len(set(names)) == len(names)


def test_what_is_expected_is_declared() -> None:
    """None only for what the sweeper or the supervisor heals; what needs a person names its alert and its scenario."""
    for item in table.declared(catalogue.ALL):
        is_self_healing = item["name"] in {"worker-killed", "expired-lock", "abandoned-lock", "parts-killed"}
        assert (item["expects"] == ["none"]) == is_self_healing, item
        assert item["what"] and item["cause"] and item["scenario"]


def test_nothing_is_found_on_a_healthy_instance(
    told: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    results = [Result(**{key: value for key, value in item.items() if key != "is_passed"}) for item in told["drills"]]
    record_property("told", "\n".join(table.lines(results, told["healthy_problems"])))
    assert told["healthy_problems"] == []


@pytest.mark.parametrize("kind", [_parameter(kind) for kind in catalogue.ALL])
def test_drill(kind: type[Drill], told: dict[str, Any]) -> None:
    (result,) = [item for item in told["drills"] if item["name"] == kind.title()]
    if result["skipped"]:
        pytest.skip(f"DRILL SKIPPED: {result['skipped']}")
    assert result["problems"] == []
    assert result["heal_seconds"] is not None
    if kind.expects:
        assert result["detect_seconds"] is not None and result["resolve_seconds"] is not None
        assert result["first_cause"] == kind.cause
        assert result["incident"]
    else:
        assert result["heal_seconds"] < 60
