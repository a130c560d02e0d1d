"""The chart's NetworkPolicies are exactly what the product needs: what was seen is allowed, what is allowed was seen.

Runs last: what it judges are the connections of all the tests before it.
"""

from __future__ import annotations

from cluster.installation import NAMESPACE, Installation
from cluster.network import Policies, Spoken, Watch, possible


def test_every_connection_seen_is_allowed(installation: Installation, watch: Watch) -> None:
    watch.look()
    policies = Policies(installation)
    ours = [spoken for spoken in watch.spoken if NAMESPACE in (_namespace(spoken.source), _namespace(spoken.target))]
    assert len(ours) > 40, "hardly anything was seen"
    refused = [
        spoken
        for spoken in ours
        if not policies.allow(watch.parties.get(spoken.source), watch.parties.get(spoken.target), spoken.port)
    ]
    assert sorted(refused) == []
    # the answers are not all yes: nobody may enter who has no business there
    stranger = watch.parties["korrigo-services/webhook"]
    for room in ("ingest", "grading", "render", "audit"):
        for _, port in watch.parties[f"{NAMESPACE}/{room}"].ports:
            assert not policies.allow(stranger, watch.parties[f"{NAMESPACE}/{room}"], port)


def test_every_allowed_connection_is_seen_in_some_story(installation: Installation, watch: Watch) -> None:
    watch.look()
    policies = Policies(installation)
    allowed = {
        spoken
        for source, target, port, spoken in possible(watch.parties.values())
        if policies.allow(source, target, port)
    }
    assert sorted(allowed - watch.spoken) == []


def _namespace(name: str) -> str:
    return name.partition("/")[0]


def test_what_is_compared_is_what_was_seen(watch: Watch) -> None:
    assert Spoken(f"{NAMESPACE}/grading", "korrigo-services/postgresql", 5432) in watch.spoken
    assert Spoken("korrigo-services/gateway", f"{NAMESPACE}/grading", 8080) in watch.spoken
