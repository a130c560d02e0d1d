"""What the registry of causes promises: names that others rely on, an order, remedies that can be typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.commands_named import complaint
from korrigo.doctor import registry
from korrigo.doctor.causes import CERTAIN, LIKELY, POSSIBLE, SEEN, Cause, Found
from korrigo.doctor.names import SCENARIOS
from korrigo_kit.errors import Invalid

ROOT = Path(__file__).resolve().parents[2]
# Drills, runbooks and scripts know them by these names.
SLUGS = frozenset(
    "worker-down corrupted-pdf import-timeout disk-full broker-down import-rolled-back render-error missing-page "
    "annotation-out-of-page out-of-memory expired-lock retries-exhausted browser-crash heartbeat-loss token-mismatch "
    "concurrent-finalize slow-query lock-contention queue-backlog connections-exhausted memory-pressure missing-event "
    "audit-chain-broken outbox-undrained database-down object-store-down alertmanager-down prometheus-down room-down "
    "alerting-silent sweeper-stale backup-too-old contested-copy".split()
)
VALUES = {"copy": "01890000-0000-7000-8000-000000000001", "scan": "01890000-0000-7000-8000-000000000002",
          "room": "ingest", "pid": "4711", "url": "http://127.0.0.1:9090"}  # fmt: skip


def test_every_agreed_cause_is_there_once_and_has_a_page() -> None:
    slugs = [cause.slug for cause in registry.CAUSES]
    assert len(slugs) == len(set(slugs))
    assert set(slugs) == SLUGS
    for cause in registry.CAUSES:
        assert (ROOT / "docs" / "runbooks" / f"{cause.runbook}.md").exists(), cause.slug
        assert cause.scenarios and set(cause.scenarios) <= set(SCENARIOS), cause.slug
        assert len(set(cause.scenarios)) == len(cause.scenarios), cause.slug


@pytest.mark.parametrize("cause", registry.CAUSES, ids=lambda cause: cause.slug)
def test_remedies_can_be_typed(cause: Cause) -> None:
    for mode in ("embedded", "production"):
        assert any(remedy.mode in ("", mode) for remedy in cause.remedies), f"nothing to do when {mode}"
    for remedy in cause.remedies:
        for text in (remedy.command, remedy.dry_run):
            if text is None:
                continue
            command = text.format_map(VALUES)
            assert not re.search(r"[{}]", command)
            if command.startswith("korrigo "):
                assert complaint(command.removeprefix("korrigo ")) in (None, ""), command


def test_a_scenario_has_two_names() -> None:
    for name, (alias, _) in SCENARIOS.items():
        assert registry.scenario(name) == registry.scenario(alias) == name
        assert registry.of(name)[0].scenarios[0] == name, f"{name} has no cause of its own"
    with pytest.raises(Invalid):
        registry.scenario("weather")


def test_causes_are_ranked_by_certainty_and_then_by_who_explains_whom() -> None:
    causes = registry.of("finalization-failing")
    found = {
        "retries-exhausted": Found(POSSIBLE, ("x",)),
        "missing-page": Found(SEEN, ("x",)),
        "worker-down": Found(SEEN, ("x",)),
        "render-error": Found(LIKELY, ("x",)),
        "database-down": Found(CERTAIN, ("x",)),
        "room-down": Found(CERTAIN, ("x",)),
    }
    order = [cause.slug for cause in registry.rank(causes, found)]
    assert order == ["room-down", "database-down", "worker-down", "missing-page", "render-error", "retries-exhausted"]


def test_the_database_being_away_belongs_to_every_scenario() -> None:
    for name in SCENARIOS:
        assert "database-down" in {cause.slug for cause in registry.of(name)}
