"""What is decided about stuck work: pure, so that every rule is tried on everything that could be stuck."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korrigo_kit import stuck
from korrigo_kit.vitals import Vitals
from korrigo_operator import asking
from korrigo_operator.policies import durations, facts, healing, lifecycle
from korrigo_operator.policies.facts import ACT, ASK, LOOK, WAIT, Acts, Found, Limits

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
ERRORS = ["", "BUG", "TIMEOUT", "BLOB_CORRUPTED", "DATABASE_UNAVAILABLE", "RESOURCE_LIMIT"]


def found(**changes: object) -> Found:
    base = Found("ingest", "import", facts.LOST_TASK, "scan", "s1", NOW - timedelta(hours=1))
    return replace(base, **changes)  # type: ignore[arg-type]


# A busy machine is no finding.
unhurried = settings(deadline=None, max_examples=60)
moments = st.integers(0, 7 * 86_400).map(lambda seconds: NOW - timedelta(seconds=seconds))


@st.composite
def anything(draw: st.DrawFn) -> Found:
    tried = draw(st.integers(0, 5))
    return Found(
        room=draw(st.sampled_from(["ingest", "grading", "render"])),
        stage=draw(st.sampled_from(facts.STAGES)),
        reason=draw(st.sampled_from(stuck.REASONS)),
        kind=draw(st.sampled_from(["copy", "scan"])),
        id=draw(st.uuids().map(str)),
        since=draw(moments),
        error_reason=draw(st.sampled_from(ERRORS)),
        tried=tried,
        tried_at=draw(moments) if tried else None,
        is_paused=draw(st.booleans()),
        is_cut_off=draw(st.booleans()),
    )


limits = st.builds(
    Limits,
    mode=st.sampled_from([facts.OBSERVE, facts.SUGGEST, facts.AUTO]),
    per_sweep=st.integers(0, 5),
    per_hour=st.integers(0, 8),
    is_paused=st.booleans(),
)
acts = st.builds(Acts, last_hour=st.integers(0, 10), failures=st.integers(0, 8), failed_at=moments)
many = st.lists(anything(), max_size=20, unique_by=lambda item: item.key)


def test_the_words_are_those_of_the_rooms() -> None:
    assert stuck.STAGES == facts.STAGES
    named = {facts.LOST_TASK, facts.WORKER_DEAD, facts.NO_PROGRESS, facts.RETRIES_EXHAUSTED, facts.LOCK_EXPIRED}
    assert named == set(stuck.REASONS)


# ---------------------------------------------------------------------------------------------- always
@unhurried
@given(many, limits, acts)
def test_whatever_is_stuck_no_bound_is_passed(items: list[Found], policy: Limits, done: Acts) -> None:
    decided = healing.decide(items, policy, done, NOW)
    acted = [item for item, decision in decided if decision.verdict == ACT]
    assert len(decided) == len(items)
    assert len(acted) <= min(policy.per_sweep, max(0, policy.per_hour - done.last_hour))
    if policy.is_paused or policy.mode != facts.AUTO:
        assert acted == []
    for item in acted:
        assert not item.is_paused
        assert item.tried < policy.per_subject
        assert item.reason != facts.WORKER_DEAD
        assert item.reason != facts.LOST_TASK or not item.is_cut_off
        assert item.reason != facts.RETRIES_EXHAUSTED or item.error_reason in healing.PASSING
    for _, decision in decided:
        assert decision.reason.isalpha()
        assert decision.message


@unhurried
@given(many, limits, acts)
def test_an_open_circuit_lets_one_try_through_at_most(items: list[Found], policy: Limits, done: Acts) -> None:
    trials = healing.trials_left(items, policy, done, NOW)
    if trials is not None:
        acted = [item for item, decision in healing.decide(items, policy, done, NOW) if decision.verdict == ACT]
        assert len(acted) <= trials <= 1


@unhurried
@given(anything(), limits)
def test_waiting_never_makes_an_act_of_what_needs_a_person(item: Found, policy: Limits) -> None:
    decision = healing.judge(item, policy, NOW)
    later = healing.judge(item, policy, NOW + timedelta(days=1))
    if decision.verdict == ASK:
        assert later.verdict == ASK


@unhurried
@given(anything(), anything())
def test_uids_are_the_same_for_the_same_facts_only(one: Found, other: Found) -> None:
    assert healing.uid(one, "RetryImport") == healing.uid(replace(one, is_paused=not one.is_paused), "RetryImport")
    assert healing.uid(one, "RetryImport") != healing.uid(replace(one, tried=one.tried + 1), "RetryImport")
    if one.key != other.key:
        assert healing.uid(one, "RetryImport") != healing.uid(other, "RetryImport")
    assert len(healing.uid(one, "RetryImport")) <= 63


# ---------------------------------------------------------------------------------------------- one by one
@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, ACT, "Acting"),
        ({"stage": "lock", "reason": facts.LOCK_EXPIRED, "kind": "copy"}, ACT, "Acting"),
        ({"stage": "lock", "reason": facts.NO_PROGRESS, "kind": "copy"}, ACT, "Acting"),
        ({"since": NOW - timedelta(seconds=20)}, WAIT, "TooYoung"),
        ({"reason": facts.WORKER_DEAD}, WAIT, "NoWorker"),
        ({"reason": facts.NO_PROGRESS, "error_reason": "DATABASE_UNAVAILABLE"}, WAIT, "NeedsAnotherPart"),
        ({"reason": facts.RETRIES_EXHAUSTED, "error_reason": "BUG"}, ASK, "NeedsPerson"),
        ({"reason": facts.RETRIES_EXHAUSTED, "error_reason": "RESOURCE_LIMIT"}, ASK, "NeedsPerson"),
        ({"reason": facts.RETRIES_EXHAUSTED}, ASK, "NeedsPerson"),
        ({"reason": facts.RETRIES_EXHAUSTED, "error_reason": "TIMEOUT"}, ACT, "Acting"),
        ({"tried": 3, "tried_at": NOW - timedelta(hours=3)}, ASK, "AttemptsSpent"),
        ({"tried": 2, "tried_at": NOW - timedelta(seconds=90)}, WAIT, "CoolingDown"),
        ({"tried": 2, "tried_at": NOW - timedelta(seconds=130)}, ACT, "Acting"),
        ({"is_paused": True}, LOOK, "Paused"),
    ],
)
def test_each_rule(changes: dict[str, object], verdict: str, reason: str) -> None:
    decision = healing.judge(found(**changes), Limits(), NOW)
    assert (decision.verdict, decision.reason) == (verdict, reason)


def test_exhausted_work_is_not_hidden_from_the_alerts() -> None:
    """ImportStuck waits 5 minutes, and the page tells a person: only after that is it tried again, ever more rarely."""
    item = found(reason=facts.RETRIES_EXHAUSTED, error_reason="TIMEOUT", since=NOW)
    assert healing.judge(item, Limits(), NOW + timedelta(minutes=14)).verdict == WAIT
    assert healing.judge(item, Limits(), NOW + timedelta(minutes=16)).verdict == ACT
    again = replace(item, tried=1, tried_at=NOW - timedelta(minutes=1))
    assert healing.judge(again, Limits(), NOW + timedelta(minutes=16)).verdict == WAIT


def test_the_breaker_opens_after_failures_and_lets_one_through_after_a_while() -> None:
    items = [found(id=str(number)) for number in range(3)]
    failing = Acts(last_hour=5, failures=5, failed_at=NOW - timedelta(minutes=1))
    assert [decision.reason for _, decision in healing.decide(items, Limits(), failing, NOW)] == ["CircuitOpen"] * 3
    cooled = replace(failing, failed_at=NOW - timedelta(minutes=11))
    verdicts = [decision.verdict for _, decision in healing.decide(items, Limits(), cooled, NOW)]
    assert verdicts == [ACT, WAIT, WAIT]


def test_what_is_stuck_again_counts_as_a_failure() -> None:
    again = [
        found(id=str(n), tried=1, tried_at=NOW - timedelta(minutes=5), since=NOW - timedelta(minutes=3))
        for n in range(5)
    ]
    assert healing.trials_left(again, Limits(), Acts(), NOW) == 0
    assert healing.trials_left(again[:4], Limits(), Acts(), NOW) is None


# ---------------------------------------------------------------------------------------------- objects
@unhurried
@given(many, st.integers(1, 10), st.integers(0, 20))
def test_objects_are_bounded_and_those_that_are_there_stay(items: list[Found], most: int, number: int) -> None:
    policy = Limits(most=most)
    known = [(item.stage, item.id) for item in items[:number]]
    chosen = lifecycle.chosen(items, known, policy, NOW)
    keys = [(item.stage, item.id) for item in chosen]
    assert len(keys) == len(set(keys)) <= most
    assert len(set(known) & set(keys)) == min(len(set(known)), most)


def test_an_object_ends_ten_minutes_after_it_was_resolved() -> None:
    known = lifecycle.Known(("import", "s1"), "ingest", NOW - timedelta(hours=1))
    assert lifecycle.fate(known, [], None, True, NOW) == lifecycle.RESOLVE
    resolved = replace(known, resolved_at=NOW)
    assert lifecycle.fate(resolved, [], None, True, NOW + timedelta(minutes=9)) == lifecycle.KEEP
    assert lifecycle.fate(resolved, [], None, True, NOW + timedelta(minutes=10)) == lifecycle.DELETE


def test_what_nobody_knows_stays_as_it_is() -> None:
    known = lifecycle.Known(("import", "s1"), "ingest", NOW - timedelta(hours=1))
    assert lifecycle.fate(known, [], None, False, NOW) == lifecycle.KEEP, "its room is silent"
    assert lifecycle.fate(known, [], NOW - timedelta(hours=2), True, NOW) == lifecycle.KEEP, "only older ones were told"
    assert lifecycle.fate(known, [("import", "s1")], None, True, NOW) == lifecycle.DELETE, "beyond the most"


def test_durations_are_read() -> None:
    assert [durations.seconds(text) for text in ("30s", "10m", "1h30m", "0s")] == [30, 600, 5400, 0]
    for wrong in ("", "10", "10d", "-1s", "1s2"):
        with pytest.raises(ValueError, match="no duration"):
            durations.seconds(wrong)


def test_lost_work_is_left_alone_while_nothing_can_be_rung_for() -> None:
    """Ringing is what helps it, and the broker is away: acts would be spent, and noted in the trail, for nothing."""
    assert healing.judge(found(), Limits(), NOW).verdict == ACT
    waiting = healing.judge(found(is_cut_off=True), Limits(), NOW)
    assert (waiting.verdict, waiting.reason) == (WAIT, "NoBroker")


@pytest.mark.parametrize(("ages", "is_cut_off"), [((0.0, 59.0), False), ((0.0, 61.0), True)])
def test_events_of_one_room_that_wait_tell_of_the_broker_of_all(ages: tuple[float, ...], is_cut_off: bool) -> None:
    told = [Vitals(NOW, 1, age, 0, 0, None) for age in ages]
    (fact,) = asking.facts([stuck.Stuck("render", "finalize", stuck.LOST_TASK, "copy", "c1", NOW)], told)
    assert (fact.room, fact.is_cut_off) == ("render", is_cut_off)
