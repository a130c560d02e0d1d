"""Incident objects: a new group of alerts always gets one, and none fires for ever because its group was lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.kept_objects import KeptObjects
from korrigo_operator.policies import lifecycle
from korrigo_operator.policies.episode import AlertEpisode, AlertTold
from korrigo_operator.policies.lifecycle import MOST_INCIDENTS, Wanted
from korrigo_operator.sweeping import incidents
from korrigo_operator.sweeping.incidents import Told

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
moments = st.integers(0, 3600).map(lambda seconds: NOW - timedelta(seconds=seconds))
ends = st.none() | moments


def episode(number: int, *, began: datetime, ended: datetime | None = None, priority: str = "P2") -> AlertEpisode:
    alert = AlertTold(began, ended, {"alertname": f"Alert{number}", "priority": priority}, {"summary": "trouble"})
    return AlertEpisode(f"00000000-0000-7000-8000-{number:012d}", began, ended, (alert,))


def sweep(cluster: KeptObjects, told: Told, now: datetime) -> None:
    cluster.now = now
    assert incidents.reconcile(cluster, cluster.list(incidents.PLURAL), told, now) == 0


def phases(cluster: KeptObjects) -> dict[str, str]:
    return {item["spec"]["alertname"]: item["status"]["phase"] for item in cluster.list(incidents.PLURAL)}


@pytest.fixture
def full() -> KeptObjects:
    """A hundred incidents that ended, a minute apart."""
    cluster = KeptObjects(NOW)
    for number in range(MOST_INCIDENTS):
        began = NOW + timedelta(minutes=number)
        sweep(cluster, Told([episode(number, began=began)]), began)
        sweep(cluster, Told([episode(number, began=began, ended=began)]), began)
    assert set(phases(cluster).values()) == {"Resolved"}
    return cluster


def test_a_new_group_gets_an_object_where_the_oldest_that_ended_has_to_go(full: KeptObjects) -> None:
    later = NOW + timedelta(days=2)
    sweep(full, Told([episode(100, began=later, priority="P0"), episode(101, began=later)]), later)
    found = phases(full)
    assert len(found) == MOST_INCIDENTS
    assert found["Alert100"] == found["Alert101"] == "Firing"
    assert not {"Alert0", "Alert1"} & set(found)
    assert "Alert2" in found


def test_what_went_does_not_come_back_for_another_to_go(full: KeptObjects) -> None:
    """Grading still tells of it: that it ended less than an hour ago is no reason to make it again and again."""
    now = NOW + timedelta(minutes=MOST_INCIDENTS - 1)
    ended = [
        episode(n, began=NOW + timedelta(minutes=n), ended=NOW + timedelta(minutes=n)) for n in range(MOST_INCIDENTS)
    ]
    told = Told([episode(100, began=now), *ended])
    for _ in range(3):
        sweep(full, told, now)
        assert "Alert0" not in phases(full)
        assert len(phases(full)) == MOST_INCIDENTS
    assert full.told.count("Incident") == MOST_INCIDENTS + 1


def test_what_fires_is_never_dropped_and_the_worst_comes_first(caplog: pytest.LogCaptureFixture) -> None:
    cluster = KeptObjects(NOW)
    many = [episode(n, began=NOW + timedelta(seconds=n), priority="P3") for n in range(MOST_INCIDENTS + 1)]
    sweep(cluster, Told([*many, episode(200, began=NOW + timedelta(hours=1), priority="P0")]), NOW)
    assert {"Alert200", "Alert98"} <= set(phases(cluster))
    assert len(phases(cluster)) == MOST_INCIDENTS
    assert "2 alert groups fire without an Incident" in caplog.text


@settings(deadline=None, max_examples=60)
@given(st.lists(ends, max_size=120), st.lists(st.tuples(st.sampled_from(["P0", "P3"]), ends), max_size=30))
def test_whatever_there_is_the_bound_is_kept(
    known: list[datetime | None], new: list[tuple[str, datetime | None]]
) -> None:
    there = {f"k{number}": ended_at for number, ended_at in enumerate(known[:MOST_INCIDENTS])}
    wanted = {f"n{number}": Wanted(priority, NOW, ended_at) for number, (priority, ended_at) in enumerate(new)}
    made, gone = lifecycle.incidents(there, wanted)
    assert len(there) - len(gone) + len(made) == min(MOST_INCIDENTS, len(there) + len(wanted))
    assert all(there[name] is not None for name in gone)
    kept = {name: there[name] for name in there if name not in gone} | {name: wanted[name].ended_at for name in made}
    again = {name: one for name, one in wanted.items() if name not in made}
    again |= {name: Wanted("P3", NOW, there[name]) for name in gone}
    assert lifecycle.incidents(kept, again) == ([], []), "the next sweep would change it again"


# ---------------------------------------------------------------------------------------------- lost episodes
def test_an_incident_whose_group_grading_lost_is_closed() -> None:
    cluster = KeptObjects(NOW)
    lost = episode(1, began=NOW)
    sweep(cluster, Told([lost]), NOW)
    assert incidents.firing(cluster.list(incidents.PLURAL)) == [lost.id]
    later = NOW + timedelta(hours=2)
    sweep(cluster, Told([], unknown=()), later)
    assert phases(cluster) == {"Alert1": "Firing"}, "beyond the newest that were told, or told by an older grading"
    sweep(cluster, Told([], unknown=[lost.id]), later)
    (item,) = cluster.list(incidents.PLURAL)
    status = item["status"]
    assert (status["phase"], status["durationSeconds"]) == ("Resolved", 7200)
    assert [line["kind"] for line in status["timeline"]] == ["alert", "note"]
    assert "grading does not know these alerts any more" in status["report"]
    assert {one["type"]: one["status"] for one in status["conditions"]}["Firing"] == "False"
    assert incidents.firing([item]) == []
    before = cluster.list(incidents.PLURAL)
    sweep(cluster, Told([], unknown=[lost.id]), later + timedelta(minutes=1))
    assert cluster.list(incidents.PLURAL) == before, "closed once"
    sweep(cluster, Told([]), later + lifecycle.KEEP_INCIDENTS + timedelta(minutes=1))
    assert phases(cluster) == {}


def test_an_incident_that_was_closed_by_mistake_fires_again() -> None:
    cluster = KeptObjects(NOW)
    told = episode(1, began=NOW)
    sweep(cluster, Told([told]), NOW)
    sweep(cluster, Told([], unknown=[told.id]), NOW + timedelta(minutes=1))
    sweep(cluster, Told([told]), NOW + timedelta(minutes=2))
    assert phases(cluster) == {"Alert1": "Firing"}
