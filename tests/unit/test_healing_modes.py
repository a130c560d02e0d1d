"""Where the embedded healer runs, within which limits, and how often it says the same thing."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from korrigo import healing, rooms
from korrigo_kit.settings import SettingsError, load
from korrigo_operator.policies import facts
from korrigo_operator.policies.facts import Decision, Found

MODE = "KORRIGO_HEALING__MODE"
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def test_it_runs_beside_a_sweeper_of_every_room_unless_it_is_off() -> None:
    """A pod has one room, and the operator to heal it."""
    settings = load(rooms.sections(), {})
    assert healing.beside(["all"], settings) is healing.beside_the_sweeper
    assert healing.beside(rooms.NAMES, settings) is healing.beside_the_sweeper
    assert healing.beside(["grading"], settings) is None
    assert healing.beside(["all"], load(rooms.sections(), {MODE: "observe"})) is healing.beside_the_sweeper
    assert healing.beside(["all"], load(rooms.sections(), {MODE: "off"})) is None
    with pytest.raises(SettingsError, match=MODE):
        load(rooms.sections(), {MODE: "sometimes"})


def test_its_limits_are_the_policy_of_a_cluster_and_the_age_that_counts_as_stuck_here() -> None:
    shipped = healing.limits(load(rooms.sections(), {}))
    assert shipped == facts.Limits()
    ours = healing.limits(load(rooms.sections(), {MODE: "observe", "KORRIGO_JOBS__STUCK_SECONDS": "7"}), is_paused=True)
    assert (ours.mode, ours.is_paused) == (facts.OBSERVE, True)
    assert ours.stuck_after_seconds == dict.fromkeys(facts.STAGES, 7.0)
    assert replace(ours, mode=shipped.mode, is_paused=False, stuck_after_seconds=shipped.stuck_after_seconds) == shipped


def test_each_decision_is_said_once_and_again_after_it_was_healed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "korrigo.healing")
    found = Found("grading", "finalize", facts.RETRIES_EXHAUSTED, "copy", "c1", SINCE, error_reason="BUG")
    asks = Decision(facts.ASK, "NeedsPerson", "failed with BUG", "RetryFinalize")
    looks = Decision(facts.LOOK, "PolicyPaused", "the policy is paused", "RetryFinalize")
    waits = Decision(facts.WAIT, "TooYoung", "not stuck for long enough", "RetryFinalize")
    acts = Decision(facts.ACT, "Acting", "RetryFinalize is done", "RetryFinalize")
    telling = healing.Telling()
    for decision in (waits, asks, asks, looks, asks, acts):
        telling([(found, decision)])
    telling([])
    telling([(found, asks)])
    said = [(record.levelname, record.__dict__["reason"]) for record in caplog.records]
    ask = ("WARNING", "NeedsPerson")
    assert said == [ask, ("INFO", "PolicyPaused"), ask, ask]
    assert {record.__dict__["copy_id"] for record in caplog.records} == {"c1"}
    assert "stuck in finalize, retries_exhausted: failed with BUG" in caplog.text
