"""StuckCopy objects: never more than the policy says, whatever heals, comes anew or is silent meanwhile."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.kept_objects import KeptObjects
from korrigo_operator.asking import Seen
from korrigo_operator.policies import facts, lifecycle
from korrigo_operator.policies.facts import OBSERVE, Found, Limits
from korrigo_operator.policies.lifecycle import DELETE, KEEP, RESOLVE, Known
from korrigo_operator.sweeping import objects, stuck_copies

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
LIMITS = Limits(mode=OBSERVE)
MOST = LIMITS.most


def scans(first: int, number: int, room: str = "ingest") -> list[Found]:
    """Tell of scans that are stuck, the first for the longest."""
    return [
        Found(room, "import", facts.LOST_TASK, "scan", f"00000000-0000-7000-8000-{n:012d}",
              NOW - timedelta(days=1) + timedelta(seconds=n))
        for n in range(first, first + number)
    ]  # fmt: skip


def sweep(cluster: KeptObjects, found: list[Found], minutes: float = 0, *silent: str, limits: Limits = LIMITS) -> None:
    now = cluster.now = NOW + timedelta(minutes=minutes)
    seen = Seen(found=found, silent=dict.fromkeys(silent, "UNAVAILABLE"))
    assert stuck_copies.reconcile(cluster, seen, limits, now, "https://runbooks/").failed == 0
    assert len(cluster.list(stuck_copies.PLURAL)) <= cluster.most[stuck_copies.PLURAL] <= MOST


def phases(cluster: KeptObjects) -> dict[str, int]:
    told = [item["status"]["phase"] for item in cluster.list(stuck_copies.PLURAL)]
    return {phase: told.count(phase) for phase in set(told)}


def test_healed_ones_make_place_for_those_that_come_after_them() -> None:
    """Two hundred are healed in every sweep; without the bound all would stay ten minutes."""
    cluster = KeptObjects(NOW)
    for step in range(5):
        sweep(cluster, scans(step * MOST, 5 * MOST - step * MOST), step / 2)
        assert phases(cluster) == {"Open": MOST}
    assert cluster.told.count("Resolved") == 4 * MOST, "people hear of those that went at once, too"
    sweep(cluster, [], 3)
    assert phases(cluster) == {"Resolved": MOST}
    sweep(cluster, scans(5000, 10), 4)
    assert phases(cluster) == {"Resolved": MOST - 10, "Open": 10}
    sweep(cluster, [], 13.5)
    assert phases(cluster) == {"Resolved": 10}


def test_the_oldest_resolved_go_first() -> None:
    cluster = KeptObjects(NOW)
    sweep(cluster, scans(0, MOST))
    sweep(cluster, scans(100, 100), 1)
    sweep(cluster, [], 2)
    sweep(cluster, scans(1000, 100), 3)
    left = {item["spec"]["scanId"] for item in cluster.list(stuck_copies.PLURAL) if item["status"]["phase"] != "Open"}
    assert left == {item.id for item in scans(100, 100)}


def test_a_silent_room_does_not_keep_the_others_from_being_shown() -> None:
    """Its objects stay while there is place; what a person paused stays in any case."""
    cluster = KeptObjects(NOW)
    sweep(cluster, scans(0, MOST))
    paused = stuck_copies.name_of(("import", scans(7, 1)[0].id))
    cluster.patch(stuck_copies.PLURAL, paused, {"metadata": {"annotations": {objects.PAUSE: objects.PAUSED}}})
    sweep(cluster, [], 1, "ingest")
    assert phases(cluster) == {"Open": MOST}
    sweep(cluster, scans(1000, 50, "render"), 2, "ingest")
    rooms = [item["spec"]["room"] for item in cluster.list(stuck_copies.PLURAL)]
    assert (rooms.count("ingest"), rooms.count("render")) == (MOST - 50, 50)
    sweep(cluster, scans(1000, 500, "render"), 3, "ingest")
    assert cluster.get(stuck_copies.PLURAL, paused) is not None


def test_a_lower_most_is_kept_at_once() -> None:
    cluster = KeptObjects(NOW)
    sweep(cluster, scans(0, MOST))
    sweep(cluster, scans(0, 5), 1, limits=replace(LIMITS, most=8))
    assert phases(cluster) == {"Open": 5, "Resolved": 3}


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from([KEEP, RESOLVE, DELETE]), st.none() | st.integers(0, 600), st.booleans()), max_size=20
    ),
    st.integers(-3, 20),
)
def test_whatever_rests_no_more_stay_than_there_are_places(
    items: list[tuple[str, int | None, bool]], places: int
) -> None:
    rest = {}
    for number, (fate, age, is_paused) in enumerate(items):
        resolved_at = None if age is None or fate == RESOLVE else NOW - timedelta(seconds=age)
        rest[f"n{number}"] = (Known(("import", f"n{number}"), "ingest", NOW, resolved_at, is_paused), fate)
    fates = lifecycle.bounded(rest, places)
    staying = {name for name, fate in fates.items() if fate != DELETE}
    assert len(staying) == min(max(0, places), sum(fate != DELETE for _, fate in rest.values()))
    assert all(fates[name] == rest[name][1] for name in staying)
    gone = [rest[name][0].resolved_at for name in fates if name not in staying and rest[name][1] != DELETE]
    kept = [rest[name][0].resolved_at for name in staying]
    for resolved_at in kept:
        assert resolved_at is None or all(one is not None and one <= resolved_at for one in gone)
